"""What a type checker says of a user's file: names of closed lists, settings and results have types."""

import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
from typing import get_args

import pytest
from helpers import ROOT, python_environment

import mla_numba.modes
import tiling.modes
from mla_numba.base import modes
from mla_numba.layouts import RECORD_ORDERS

USER = """
import numpy as np

import mla_numba as mla
import tiling
from mla_numba.dumps import DumpSettings, dump_settings, write_dump
from mla_numba.inputs import random_inputs
from mla_numba.layouts import from_records

dims = mla.MlaDims.deepseek_v32()
weights = mla.MlaWeights.random(dims, quant="ab")
prolog = mla.MlaProlog(weights, "prefill", tile_config="auto", numerics="cann")
cache = mla.PagedCache.allocate(dims, 4, cache_mode="PA_NZ")
out = prolog(*random_inputs(dims, 1, 0, cache.capacity), cache)
reveal_type(prolog.weights.quant)
reveal_type(prolog.plan(8).phase)
reveal_type(prolog.profile)
reveal_type(cache.cache_mode)
reveal_type(out.q_norm_scale)
reveal_type(tiling.PRESETS)
reveal_type(mla.MlaProlog.load("layer0.mla", numerics="cann"))
tiling.plan_prolog(dims, 8, micro={"bf16": tiling.MicroTile(4, 64, 1, 2), "int8": tiling.MicroTile(4, 64, 1, 1)})
for name in tiling.PRESETS:
    mla.preset(name, "950")
"""
WRONG = {  # a line, and what the message about it says: mostly the name in it that is none
    'mla.MlaProlog(weights, "decod")': "decod",
    'mla.MlaProlog(weights, phase="decod")': "decod",
    'mla.MlaProlog(weights, numerics="npu")': "npu",
    'mla.MlaProlog(weights, tile_config="automatic")': "automatic",
    'mla.MlaProlog.load("layer0.mla", "decod")': "decod",
    'mla.MlaProlog.load("layer0.mla", numerics="npu")': "npu",
    'mla.MlaProlog.load("layer0.mla", thread=2)': "thread",
    'mla.MlaWeights.random(dims, quant="c")': "c",
    'weights.quantize("int8")': "int8",
    'mla.PagedCache.allocate(dims, 4, cache_mode="PA")': "PA",
    'mla.preset("decode")': "decode",
    'mla.preset("default", "A5")': "A5",
    'mla.pass_options("decod", 8)': "decod",
    'tiling.plan_prolog(dims, 8, micro={}, quant="c")': "c",
    'from_records(np.zeros((1, 656), np.uint8), order="vllm")': "vllm",
    'tiling.Machine("CPU", "x86_64", "sse", 1, 1, 1, 1, 1)': "sse",
    'tiling.Costs.of_isa("sse")': "sse",
    "mla.mla_prolog_quant_d(1)": "Too few arguments",
    'mla.mla_prolog_quant_p(cache_mod="TND")': "cache_mod",
    'mla.Checkpoint("folder").load_layer(0, "int8")': "int8",
    'DumpSettings(cache_mode="PA")': "PA",
    'dump_settings("folder", numerics="npu")': "npu",
    'dump_settings("folder", operator="mla_prolog")': "mla_prolog",
    'write_dump("folder", 4, "c")': "c",
    'write_dump("folder", 4, file_format="npz")': "npz",
    'write_dump("folder", 4, style="numbered")': "numbered",
    'write_dump("folder", 4, scale_dtype="bf16")': "bf16",
}
REVEALED = [
    "Literal['none'] | Literal['a'] | Literal['b'] | Literal['ab']",
    "Literal['decode'] | Literal['prefill']",
    "def (x: numpy.ndarray",
    "Literal['PA_BSND'] | Literal['PA_NZ'] | Literal['BSND'] | Literal['TND']",
    "numpy.ndarray",
    "tuple[Literal['default'] |",
    "mla_numba.prolog.MlaProlog",
]


def is_installed():
    """Whether the package that runs is found without the tests' own path: installed, editable or not."""
    try:
        importlib.metadata.distribution("mla_numba")
    except importlib.metadata.PackageNotFoundError:
        return False
    probe = "import mla_numba; print(mla_numba.__file__)"
    where = {k: v for k, v in python_environment().items() if k != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-P", "-c", probe], cwd="/", env=where, capture_output=True, check=False)
    return done.stdout.decode().strip() == str(ROOT / "mla_numba" / "__init__.py") or b"site-packages" in done.stdout


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """Lines of mypy's about a user's file in another folder, by number, and the lines of the file."""
    if importlib.util.find_spec("mypy") is None or not is_installed():
        pytest.skip("mypy, or an installed mla_numba, is not there")
    folder = tmp_path_factory.mktemp("user")
    lines = (USER + "\n".join(WRONG)).splitlines()
    (folder / "user.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--output", "json", "user.py"]
    environment = {
        name: value for name, value in python_environment().items() if name not in ("PYTHONPATH", "MYPYPATH")
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    found = {}
    for message in map(json.loads, done.stdout.splitlines()):
        assert message["file"] == "user.py", message
        found.setdefault(message["line"], []).append(message["message"])
    return lines, found


def test_right_names_are_taken_and_results_have_types(said):
    lines, found = said
    ours = {n: found[n] for n in found if lines[n - 1] not in WRONG}
    assert [lines[n - 1] for n in ours if not lines[n - 1].startswith("reveal_type(")] == []
    revealed = [re.sub(r'^Revealed type is "|"$|\?', "", text[0]) for text in ours.values()]
    assert len(revealed) == len(REVEALED)
    for text, begin in zip(revealed, REVEALED, strict=True):
        assert text.replace("Literal['none', 'a', 'b', 'ab']", REVEALED[0]).startswith(begin), text


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_name_is_an_error(said, line):
    lines, found = said
    messages = found.get(lines.index(line) + 1, [])
    assert any(WRONG[line] in message for message in messages), messages


def test_each_list_is_that_of_its_type():
    names = {
        "QUANT_MODES": "QuantMode", "CALL_PHASES": "CallPhase", "DTYPES": "Dtype", "PRESETS": "PresetName",
        "NPU_ARCHS": "NpuArch", "ORIGINS": "Origin", "NUMERICS": "Numerics", "PAGED_MODES": "PagedMode",
        "CONTIGUOUS_MODES": "ContiguousMode", "CACHE_MODES": "CacheMode", "DUMP_FORMATS": "DumpFormat",
        "DUMP_STYLES": "DumpStyle", "SCALE_DTYPES": "ScaleDtype", "DOWN_WAYS": "DownWay", "ISA_NAMES": "IsaName",
        "ROPE_STYLES": "RopeStyle", "DUMP_OPERATORS": "DumpOperator",
    }  # fmt: skip
    assert set(mla_numba.modes.__all__) == set(modes.__all__) - {"quant_mode"}
    lists = {name for module in (modes, tiling.modes) for name in module.__all__ if name.isupper()}
    assert lists == set(names)
    for name, type_name in names.items():
        home = modes if hasattr(modes, name) else tiling.modes
        assert getattr(home, name) == get_args(getattr(home, type_name))
    assert tuple(RECORD_ORDERS) == get_args(modes.RecordOrder)


def test_packages_say_that_they_are_typed():
    for package in ("mla_numba", "tiling"):
        assert (ROOT / package / "py.typed").is_file()
