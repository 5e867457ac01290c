"""A sweep in the form T4 of the autotuning community, as Kernel Tuner writes it: a result for each candidate."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...base.output_file import write_text
from ...tuning.study import Row

__all__ = ["write_t4"]

_VERSION = "1.0.0"
_INVALIDITY = {"wrong": "correctness", "refused": "constraints"}
_MEASURED = {
    "time": ("median_ms", "ms"), "time_min": ("min_ms", "ms"), "time_own": ("baseline_ms", "ms"),
    "ratio": ("ratio", ""), "ratio_low": ("ratio_low", ""), "ratio_high": ("ratio_high", ""),
    "final_ratio": ("final_ratio", ""), "final_low": ("final_low", ""), "final_high": ("final_high", ""),
    "GB/s": ("gb_s", "GB/s"), "Gop/s": ("gop_s", "Gop/s"), "share_of_limit": ("share", ""),
    "others": ("others", "cores"),
}  # fmt: skip


def write_t4(path: Path, facts: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Writes the rows in the form T4: configuration, runtimes in ms, validity, and what was measured with its unit.

    The number of tokens and the quant mode are part of the configuration. The objective is "time", the median in ms.
    """
    results = [_result(row, str(facts.get("date", ""))) for row in rows]
    write_text(path, json.dumps({"schema_version": _VERSION, "results": results}, indent=1) + "\n")


def _result(row: Row, date: str) -> dict[str, Any]:
    measured = [
        {"name": name, "value": value, "unit": unit}
        for name, (field, unit) in _MEASURED.items()
        if (value := getattr(row, field)) is not None
    ]
    return {
        "timestamp": date,
        "configuration": {"t": row.t, "quant": row.quant, **row.settings},
        "objectives": ["time"],
        "times": {
            "compilation": 0.0,  # kernels take their tile sizes as arguments
            "benchmark": sum(row.times_ms or []) + sum(row.own_times_ms or []),
            "framework": 0.0,
            "search_algorithm": 0.0,
            "validation": 0.0,
            "runtimes": row.times_ms or [],
        },
        "invalidity": _INVALIDITY.get(row.status, "correct"),
        "correctness": 0 if row.status in _INVALIDITY else 1,
        "measurements": measured,
    }
