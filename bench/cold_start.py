"""Run in a new process: import a package, and with --first-call compute a small prolog; print the seconds as JSON.

With --every-mode further calls follow, of a cache with float16 scales and of the other modes. Dimensions are small, for
the kernels that are loaded or compiled are those of any dimensions. Making the weights and checking the results is not
counted.
"""

import time

begin = time.perf_counter()

import importlib  # noqa: E402  # the clock has to run first
import json  # noqa: E402  # the clock has to run first
import sys  # noqa: E402  # the clock has to run first

CALLS = {"first_call": "b", "float16_scales": "b", "mode_ab": "ab", "mode_none": "none", "mode_a": "a"}


def call_seconds(kind: str) -> float:
    """Seconds that packing and a call take."""
    import numpy as np

    import mla_numba as mla
    from mla_numba.oracle.bits import check_output, reference_run
    from mla_numba.oracle.inputs import random_inputs

    dims = mla.MlaDims(256, 4, 128, 128, 64, 64)
    weights = mla.MlaWeights.random(dims, quant=CALLS[kind])
    cache, before = (mla.PagedCache.allocate(dims, 4, 16, quantized="b" in weights.quant) for _ in range(2))
    if kind == "float16_scales":
        scales = (np.zeros(c.k_scale.shape, np.float16) for c in (cache, before))
        cache, before = (mla.PagedCache(c.kv, c.kr, s) for c, s in zip((cache, before), scales, strict=True))
    inputs = random_inputs(dims, 40, seed=0, capacity=64)
    start = time.perf_counter()
    out = mla.MlaProlog(weights)(*inputs, cache)
    seconds = time.perf_counter() - start
    mismatches = check_output(out, cache, reference_run(weights, *inputs, before))
    if mismatches:
        sys.exit("; ".join(map(str, mismatches)))
    return seconds


if __name__ == "__main__":
    package = importlib.import_module(sys.argv[1])
    getattr(package, "MlaProlog", None)  # what `import mla_numba` leaves for later
    imported = time.perf_counter() - begin
    asked = list(CALLS) if "--every-mode" in sys.argv else ["first_call"] if "--first-call" in sys.argv else []
    print(json.dumps({"import": imported} | {kind: call_seconds(kind) for kind in asked}))
