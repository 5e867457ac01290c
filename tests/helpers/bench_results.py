"""Results of the bench suite as its JSON has them, and the text of its page."""

import re
from html import unescape


def entry(group, implementation, median, **extra):
    extra = {"implementation": implementation, "made_of": "plan <1>", "verified": "bit for bit"} | extra
    return {
        "group": group,
        "extra_info": extra,
        "stats": {"min": median / 2, "median": median, "iqr": median / 8, "rounds": 7},
    }


RATES = {"read_gb_s": 93.25, "fma_gflop_s": 500.0, "dot_gop_s": 2000.0}
WORK = {
    "bytes": 3_000_000,
    "flops": 4_000_000,
    "int8_ops": 2_000_000,
    "least_seconds": 2e-4,
    "share_of_roofline": 0.4,
    "rates": RATES,
}
RAW = {
    "machine_info": {
        "machine": "a CPU", "system": "Linux", "threads": 2, "waiting": "PASSIVE", "malloc": "not set",
        "dims": "hidden_size 7168",
    },
    "mla_numba": {
        "versions": {"mla_numba": "0.1.0", "torch": "not installed"},
        "threading_layer": "omp",
    },
    "commit_info": {"id": "0123456789abcdef", "dirty": True},
    "datetime": "2026-01-02T03:04:05.678+00:00",
    "benchmarks": [
        entry("prolog, T = 8, weights cold", "numpy", 4e-3, **WORK),
        entry("prolog, T = 8, weights cold", "mla_numba-b", 1e-3, **WORK, weights="cold, 4 sets in turns"),
        entry("prolog, T = 8, weights cold", "mla_numba-ab", 5e-4, **(WORK | {"least_seconds": 1e-4, "bytes": 9})),
        entry("prolog, T = 32, weights cold", "mla_numba-b", 2e-3, **(WORK | {"rates": RATES | {"read_gb_s": 50.0}})),
        entry("packing", "mla_numba-b", 0.05),
    ],
}  # fmt: skip


def words(page):
    """The text of a page, as a reader sees it."""
    body = re.sub(r"<(style|svg).*?</\1>", " ", page, flags=re.S)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())
