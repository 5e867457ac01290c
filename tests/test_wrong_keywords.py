"""A misspelt keyword of any public class or function is Python's own TypeError, before anything is written."""

import importlib
import inspect

import pytest
from helpers.public_objects import DIMS, MODULES

import mla_numba as mla
from mla_numba.dumps import dump_settings, write_dump

WRONG = "no_such_keyword"


def callables():
    """Public functions and classes by name, and the methods that classes of theirs define."""
    found = {}
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name in module.__all__:
            value = getattr(module, name)
            if not callable(value) or (getattr(value, "__module__", None) or "").split(".")[0] not in PACKAGES:
                continue
            found[f"{value.__module__}.{value.__qualname__}"] = value
            if inspect.isclass(value):
                methods = {n: m for n, m in vars(value).items() if n[0] != "_" or n == "__call__"}
                functions = {n: getattr(m, "__func__", m) for n, m in methods.items()}
                found |= {
                    f"{value.__module__}.{value.__qualname__}.{n}": getattr(value, n)
                    for n, f in functions.items()
                    if inspect.isfunction(f)
                }
    return found


PACKAGES = ("mla_numba", "tiling")
CALLABLES = callables()


@pytest.mark.parametrize("name", CALLABLES)
def test_no_signature_takes_any_keyword(name):
    """A `**settings` passes on what it gets, so that Python refuses it there; the tests below hold that."""
    signature = inspect.signature(CALLABLES[name])
    open_ended = [p for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    if open_ended:
        assert name in PASSED_ON
    else:
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{WRONG}'"):
            signature.bind_partial(**{WRONG: 1})


PASSED_ON = {
    "mla_numba.prolog.MlaProlog.load": lambda folder: mla.MlaProlog.load(saved(folder), **{WRONG: 1}),
    "mla_numba.dumps.settings.dump_settings": lambda folder: dump_settings(folder, **{WRONG: 1}),
    "mla_numba.dumps.write.write_dump": lambda folder: write_dump(folder / "dump", 2, **{WRONG: 1}),
    "tiling.cpu_tiling.CpuTiling.replace": lambda folder: mla.CpuTiling().replace(**{WRONG: 1}),
    "tiling.pypto.config.MlaTileConfig.replace": lambda folder: mla.MlaTileConfig().replace(**{WRONG: 1}),
}


def saved(folder):
    path = folder / "layer.mla"
    mla.MlaWeights.random(DIMS).pack().save(path)
    return path


@pytest.mark.parametrize("name", PASSED_ON)
def test_settings_that_are_passed_on_are_refused_too(tmp_path, name):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{WRONG}'"):
        PASSED_ON[name](tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.name != "layer.mla"] == []


def test_a_misspelt_setting_of_a_prolog():
    weights = mla.MlaWeights.random(DIMS)
    for call in (
        lambda: mla.MlaProlog(weights, thread=2),
        lambda: mla.MlaProlog(weights, n_thread=2),
        lambda: mla.MlaTileConfig(tile=8),
        lambda: mla.PagedCache.allocate(DIMS, n_block=2),
    ):
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            call()


def test_a_misspelt_setting_of_a_module():
    pytest.importorskip("torch")
    from mla_numba.interop.torch import TorchProlog

    with pytest.raises(TypeError, match="unexpected keyword argument 'thread'"):
        TorchProlog(mla.MlaWeights.random(DIMS), thread=2)
