"""How long a bench may take: what it is timed for, and preparing and checking it, which takes longer by far.

Seconds at DeepSeek-V3.2's dimensions on 2 cores of Zen 5; on another machine all are longer or shorter alike.
"""

from __future__ import annotations

import re

__all__ = ["expected_seconds"]

_NAME = re.compile(r"::(?P<bench>\w+)(\[(?P<of>[^\]]*)\])?")
_TOKENS = re.compile(r"\bT(\d+)\b")
_PROBES = 0.3  # the machine's rates before and after
# A part of the name, seconds to prepare the first of its two states, and seconds more a token.
_PREPARING = (
    ("test_further_calls", 8.0, 0.0),
    ("empty_kernel_cache", 20.0, 0.0),
    ("test_first_call", 8.0, 0.0),
    ("test_import", 6.0, 0.0),
    ("test_pack", 3.0, 0.0),
    ("test_sweep", 1.0, 0.01),
    ("torch-index-fp32", 5.0, 0.6),
    ("torch-index-int8", 5.0, 0.6),
    ("torch-attention", 2.0, 0.3),
    ("test_sparse_attention", 2.0, 0.01),
    ("test_lightning_index", 2.0, 0.01),
    ("test_prolog_with_indexer", 5.0, 0.02),
    ("P3w", 18.0, 0.03),
    ("P2p", 8.0, 0.03),
    ("torch-P", 3.0, 0.02),
    ("onnxruntime", 3.0, 0.03),
    ("numpy", 3.0, 0.06),
    ("test_prolog", 3.0, 0.02),
    ("", 0.8, 0.02),
)


def expected_seconds(nodeid: str, max_seconds: float) -> float:
    """Seconds of a bench that is timed for `max_seconds`."""
    found = _NAME.search(nodeid)
    name = nodeid if found is None else found[0]
    tokens = _TOKENS.search(name)
    first, each = next((first, each) for part, first, each in _PREPARING if part in name)
    preparing = first + each * (int(tokens[1]) if tokens else 0)
    if name.endswith("-warm]"):  # what was prepared for cold weights serves these too
        preparing = 0.1
    return preparing + _PROBES + max_seconds
