"""Names that are imported late are those that type checkers see, and what needs no kernels imports no Numba."""

import ast
import importlib

import pytest
from helpers import ROOT, run_python

from tiling.lazy_names import lazy_names

PACKAGES = ("mla_numba", "tiling")
HEAVY = {"numba", "llvmlite", "numpy", "ml_dtypes", "rich", "filelock", "platformdirs", "simpleeval"}
COMMANDS = ("run", "plan", "info", "pack", "warmup", "check", "dump", "sweep", "tune", "bench")


def imported_when_typed(package):
    """Names below `if TYPE_CHECKING` with the modules that they are taken from."""
    (block,) = (
        node
        for node in ast.parse((ROOT / package / "__init__.py").read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    return {
        alias.name: f"{'.' * node.level}{node.module or ''}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def modules_of(*args, **env):
    """The modules that a process has loaded at its end."""
    code = f"""
import atexit, sys
atexit.register(lambda: print(*sys.modules, file=sys.__stdout__))
sys.argv = ["mla-numba", *{args!r}]
from mla_numba.cli import main
main()
"""
    return set(run_python("-c", code, **env).splitlines()[-1].split())


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_comes_from_where_type_checkers_look(package):
    module = importlib.import_module(package)
    typed = imported_when_typed(package)
    assert {*typed} == {*module.__all__} - {"__version__"}
    for name, home in typed.items():
        found = getattr(importlib.import_module(home, package), name) if home != "." else None
        assert home == "." or getattr(module, name) is found
    assert {*module.__all__} <= {*dir(module)}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_name_that_is_none_is_an_attribute_error(package):
    module = importlib.import_module(package)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'MlaProlok'"):
        _ = module.MlaProlok
    assert not hasattr(module, "__wrapped__")


def test_a_name_is_looked_for_once():
    get, names = lazy_names("tiling", {"tiling.arith": ("ceil_div",)})
    assert get("ceil_div") is importlib.import_module("tiling.arith").ceil_div
    assert "ceil_div" in names()


def test_the_packages_modules_are_attributes_after_the_import_alone():
    code = "import mla_numba, tiling; print(mla_numba.prolog.MlaProlog is mla_numba.MlaProlog, tiling.planner.__name__)"
    assert run_python("-W", "error", "-c", code).split() == ["True", "tiling.planner"]


def test_import_alone_needs_nothing_but_the_standard_library():
    loaded = run_python("-W", "error", "-c", "import sys, mla_numba; print(*sys.modules)").split()
    assert not {name.split(".")[0] for name in loaded} & (HEAVY | {"click"})
    assert {name for name in loaded if name.startswith("tiling")} == {"tiling", "tiling.lazy_names"}


@pytest.mark.parametrize("args", [("--help",), ("--version",), *((name, "--help") for name in COMMANDS)], ids=" ".join)
def test_help_imports_nothing_that_computes(args):
    loaded = modules_of(*args)
    assert not {name.split(".")[0] for name in loaded} & HEAVY
    assert not loaded & {"tiling.planner", "tiling.choose", "tiling.plan", "tiling.machine", "mla_numba.kernels"}


def test_completion_imports_nothing_that_computes():
    env = {"_MLA_NUMBA_COMPLETE": "bash_complete", "COMP_WORDS": "mla-numba run --qu", "COMP_CWORD": "2"}
    assert not {name.split(".")[0] for name in modules_of(**env)} & HEAVY


def test_completion_completes():
    env = {"_MLA_NUMBA_COMPLETE": "bash_complete", "COMP_WORDS": "mla-numba run --qu", "COMP_CWORD": "2"}
    code = "import sys; sys.argv = ['mla-numba']; from mla_numba.cli import main; main(prog_name='mla-numba')"
    assert run_python("-c", code, **env).strip() == "plain,--quant"
