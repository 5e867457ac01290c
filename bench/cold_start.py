"""Run in a new process: import a package, and with --first-call compute a small prolog; print the seconds as JSON.

Dimensions are small, for the kernels that are loaded or compiled are those of any dimensions. Making the weights and
checking the result is not counted.
"""

import time

begin = time.perf_counter()

import importlib  # noqa: E402  # the clock has to run first
import json  # noqa: E402  # the clock has to run first
import sys  # noqa: E402  # the clock has to run first


def first_call() -> float:
    """Seconds that packing and the first call take."""
    import mla_numba as mla
    from mla_numba.inputs import random_inputs
    from mla_numba.verify import check_output, reference_run

    dims = mla.MlaDims(256, 4, 128, 128, 64, 64)
    weights = mla.MlaWeights.random(dims)
    cache, before = (mla.PagedCache.allocate(dims, 4, 16) for _ in range(2))
    inputs = random_inputs(dims, 40, seed=0, capacity=64)
    start = time.perf_counter()
    out = mla.MlaProlog(weights)(*inputs, cache)
    seconds = time.perf_counter() - start
    mismatches = check_output(out, cache, reference_run(weights, *inputs, before))
    if mismatches:
        sys.exit("; ".join(map(str, mismatches)))
    return seconds


if __name__ == "__main__":
    importlib.import_module(sys.argv[1])
    imported = time.perf_counter() - begin
    print(json.dumps({"import": imported, "first_call": first_call() if "--first-call" in sys.argv else 0.0}))
