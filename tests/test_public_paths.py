"""Every name that could be imported in 0.1 can be imported under the same path."""

import importlib

import pytest
from helpers import run_python

from mla_numba.former_paths import FORMER

PATHS = {
    "mla_numba.cache": "CACHE_MODES CONTIGUOUS_MODES KeyRows N_SCALES PagedCache",
    "mla_numba.checkpoint": "Checkpoint CheckpointLayer",
    "mla_numba.dims": "MlaDims",
    "mla_numba.dump_names": "INPUTS NZ_WEIGHTS OUTPUTS SCALES STYLES FileMeaning meaning_of name_in",
    "mla_numba.dumps": "FORMATS Dump DumpSettings DumpedOutput check_dump dump_settings read_dump write_dump",
    "mla_numba.engine": "MICRO_TILES BoundCall MlaProlog PrologOutput stored_choice this_machine",
    "mla_numba.inputs": "Inputs random_inputs",
    "mla_numba.kernels": "ISA ISAS cache_folder max_threads",
    "mla_numba.layouts": "from_fractal_nz pa_bsnd_to_pa_nz pa_nz_to_pa_bsnd to_fractal_nz",
    "mla_numba.measure": "Probes measure_all rates_as_dict",
    "mla_numba.ops": "MlaQuantInputs dequant k_nope_quant quant rms_norm rope_3d_v2 rope_v2 rotate_half scalar_div",
    "mla_numba.packed": "PackedGemm PackedWeights",
    "mla_numba.prolog": (
        "MlaProlog PrologOutput mla_prolog_quant_compute mla_prolog_quant_d mla_prolog_quant_p pre_compute_2d"
    ),
    "mla_numba.quantization": "QuantizationReport WeightError",
    "mla_numba.reference": "NUMERICS ReferenceOutput mla_prolog quant quant_cann rms_norm scatter sum_of_products",
    "mla_numba.rope_table": (
        "CosSin RopeTable check_cos_sin from_cos_sin_cache from_half from_interleaved softmax_scale"
    ),
    "mla_numba.tolerance": "TOLERANCES Agreement Tolerance compare_within tolerance_of",
    "mla_numba.trace": "PHASES SWEEPS Span TileTrace Trace",
    "mla_numba.verify": "Mismatch check_output compare_bits poison reference_run",
    "mla_numba.weights": "MlaWeights",
    "tiling": "CpuTiling MlaTileConfig PRESETS PassOptions ROPE_TILES plan_prolog preset",
}
INTEROP = {
    "mla_numba.interop.torch": ("torch", "TorchCache TorchKeyRows TorchOutput TorchProlog to_numpy to_torch"),
    "mla_numba.interop.torch_cache": ("torch", "TorchCache"),
    "mla_numba.interop.tensors": ("torch", "to_numpy to_torch"),
    "mla_numba.interop.hf": ("transformers", "Patched patch"),
    "mla_numba.interop.hf_cache": ("transformers", "LatentCache"),
    "mla_numba.interop.blocks": ("torch", "BlockPool"),
}


def missing(path, names):
    module = importlib.import_module(path)
    return [name for name in names.split() if getattr(module, name, None) is None]


@pytest.mark.parametrize("path", PATHS)
def test_names_of_the_library(path):
    assert missing(path, PATHS[path]) == []


@pytest.mark.parametrize("path", INTEROP)
def test_names_of_the_interop(path):
    package, names = INTEROP[path]
    pytest.importorskip(package)
    assert missing(path, names) == []


def test_former_modules_are_the_ones_of_today():
    """One module under two names, not two: what is set in the one is seen in the other."""
    for former, now in FORMER.items():
        if not former.startswith("interop."):
            assert importlib.import_module(f"mla_numba.{former}") is importlib.import_module(f"mla_numba.{now}")


def test_a_former_name_in_a_fresh_process():
    code = (
        "import mla_numba.trace as t; from mla_numba import engine; print(t.__name__, t.__spec__.name, engine.__name__)"
    )
    assert run_python("-c", code).split() == ["mla_numba.call.trace", "mla_numba.call.trace", "mla_numba.prolog"]


def test_a_name_that_never_was():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("mla_numba.nothing")
    with pytest.raises(ImportError):
        from mla_numba.prolog import nothing  # noqa: F401
