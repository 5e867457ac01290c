"""Time and peak memory from one FP8 layer at DeepSeek-V3.2's dimensions to a loaded prolog, each step in a process.

Makes the layer as a sharded safetensors checkpoint in a temporary folder, reads, quantises, packs and saves it, maps
the file and runs it, and compares that run with the reference on the checkpoint's weights.

    python bench/pack_checkpoint.py [--quant b] [--tokens 8]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"  # whose helpers make the layer
MB = 1e6


class Clock:
    """Seconds of each step, in order."""

    def __init__(self):
        self.seconds = {}
        self._last = time.perf_counter()

    def lap(self, name):
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now


def peak_bytes():
    """The most memory that this process had resident, mapped pages of files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def step_make(folder, quant, tokens):
    from helpers.checkpoint_maker import make_full_size

    make_full_size(folder / "model")
    return {}


def step_import(folder, quant, tokens):
    """What every process of ours has before it does anything."""
    import safetensors

    import mla_numba
    from mla_numba import Checkpoint, MlaProlog  # noqa: F401  # names are imported when they are first asked for

    return {"versions": [mla_numba.__version__, safetensors.__version__]}


def step_pack(folder, quant, tokens):
    from mla_numba import Checkpoint

    clock = Clock()
    weights = Checkpoint(folder / "model").load_layer(0, "none").weights
    clock.lap("read")
    after_reading = peak_bytes()
    weights = weights.quantize(quant)
    clock.lap("quantise")
    after_quantising = peak_bytes()
    packed = weights.pack()
    clock.lap("pack, kernels compiled or loaded before the first")
    weights.pack()
    clock.lap("pack again")
    packed.save(folder / "layer.mla")
    clock.lap("save")
    return {
        "seconds": clock.seconds,
        "peak_mb_after_reading": after_reading / MB,
        "peak_mb_after_quantising": after_quantising / MB,
        "packed_mb": packed.nbytes / MB,
    }


def step_load(folder, quant, tokens):
    from mla_numba import MlaDims, MlaProlog, PagedCache
    from mla_numba.oracle.inputs import random_inputs

    clock = Clock()
    prolog = MlaProlog.load(folder / "layer.mla")
    clock.lap("load")
    after_loading = peak_bytes()
    dims = MlaDims.deepseek_v32()
    cache = PagedCache.allocate(dims, 64, 128, quantized="b" in quant)
    inputs = random_inputs(dims, tokens, 1, cache.capacity)
    clock.lap("make inputs")
    MlaProlog.load(folder / "layer.mla", verify=True)
    clock.lap("load with verify")
    out = prolog.allocate_output(tokens)
    clock.lap("allocate outputs")
    prolog(*inputs, cache, out)
    clock.lap("first call, kernels compiled or loaded before it")
    prolog(*inputs, cache, out)
    clock.lap("second call")
    return {"seconds": clock.seconds, "peak_mb_after_loading": after_loading / MB}


def step_check(folder, quant, tokens):
    from mla_numba import Checkpoint, MlaProlog, PagedCache
    from mla_numba.oracle.bits import check_output, reference_run
    from mla_numba.oracle.inputs import random_inputs

    checkpoint = Checkpoint(folder / "model")
    cache = PagedCache.allocate(checkpoint.dims, 2, 128, quantized="b" in quant)
    inputs = random_inputs(checkpoint.dims, tokens, 1, cache.capacity)
    want = reference_run(checkpoint.load_layer(0, quant).weights, *inputs, cache)
    out = MlaProlog.load(folder / "layer.mla")(*inputs, cache)
    return {"mismatches": [str(m) for m in check_output(out, cache, want)]}


STEPS = {"make": step_make, "import": step_import, "pack": step_pack, "load": step_load, "check": step_check}


def run_step(name, folder, quant, tokens):
    """The step's own report with its peak memory, from a process of its own."""
    command = [sys.executable, __file__, "--step", name, "--folder", folder, "--quant", quant, "--tokens", str(tokens)]
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr}")
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quant", default="b", choices=("none", "a", "b", "ab"))
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        report = STEPS[options.step](Path(options.folder), options.quant, options.tokens)
        print(json.dumps(report | {"peak_mb": peak_bytes() / MB}))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        reports = {name: run_step(name, folder, options.quant, options.tokens) for name in STEPS}
        files = Path(folder).rglob("*")
        sizes = {path.name: path.stat().st_size / MB for path in files if path.is_file()}
    print(json.dumps({"file_mb": sizes} | reports, indent=2))
    return 1 if reports["check"]["mismatches"] else 0


if __name__ == "__main__":
    sys.exit(main())
