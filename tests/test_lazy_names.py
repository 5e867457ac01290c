"""Names that are imported late are those that type checkers see, and what needs no kernels imports no Numba."""

import ast
import importlib
import os

import pytest
from helpers import ROOT, run_python

from tiling.lazy_names import lazy_names

PACKAGES = ("mla_numba", "tiling")
HEAVY = {"numba", "llvmlite", "numpy", "ml_dtypes", "rich", "filelock", "platformdirs", "simpleeval"}
COMMANDS = ("run", "attend", "plan", "info", "pack", "warmup", "check", "dump", "sweep", "tune", "bench")


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


def test_threads_that_ask_at_once_get_whole_modules():
    code = """
import random, sys, threading
import mla_numba
sys.setswitchinterval(1e-5)
names, errors, start = list(mla_numba.__all__), [], threading.Barrier(8)
random.seed(int(sys.argv[1]))
random.shuffle(names)

def ask(first):
    start.wait()
    for name in names[first:] + names[:first]:
        try:
            getattr(mla_numba, name)
        except Exception as error:
            errors.append((name, error))

threads = [threading.Thread(target=ask, args=(4 * k,)) for k in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(errors)
"""
    for seed in range(3):
        assert run_python("-c", code, str(seed)) == "[]\n"


@pytest.mark.parametrize("package", [*PACKAGES, "mla_numba.interop.hf"])
def test_no_module_takes_a_name_from_its_own_package(package):
    """It would wait for a thread that imports it, which waits for it."""
    folder = ROOT.joinpath(*package.split("."))
    found = []
    for path in folder.rglob("*.py"):
        depth = len(path.relative_to(folder).parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and path.parent / path.name != folder / "__init__.py":
                inner = node.level == depth and node.module is None
                found += [path.name] * (inner or (node.level == 0 and node.module == package))
    assert found == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_that_is_forked_during_an_import_has_the_whole_module(tmp_path):
    (tmp_path / "slow_module.py").write_text("import time\ntime.sleep(0.5)\nvalue = 3\n")
    code = """
import os, signal, threading, time
from tiling.lazy_names import lazy_names
get, _ = lazy_names("tiling", {"slow_module": ("value",)})
thread = threading.Thread(target=get, args=("value",))
thread.start()
time.sleep(0.1)
child = os.fork()
if child == 0:
    signal.alarm(20)
    os._exit(get("value"))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
thread.join()
"""
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    assert run_python("-W", "ignore", "-c", code, PYTHONPATH=path).split() == ["3"]
