"""Arrows run one way: tiling <- kernels <- the prolog <- the command line; nothing sees tests and benches."""

import ast
from graphlib import TopologicalSorter
from typing import NamedTuple

import pytest
from helpers import ROOT, run_python

PACKAGES = ("tiling", "mla_numba")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
OPTIONAL = {"torch", "transformers", "safetensors", "matplotlib", "optuna"}
COMMAND_LINE = {"click", "rich", "simpleeval"}
EMITTING = ("isa", "llvm_ir", "peaks", "jit.body", "jit.folder", "jit.fork", "jit.outlined", "threads.atomics")
EMITTING += tuple(f"micro.{stem}" for stem in ["emitter", "library", "multiply_adds", "table", "ukernel"])
EMITTING += tuple(f"micro.{isa}" for isa in ("avx2", "avx512vnni", "avx512bf16"))
# Rooms and files of the kernels: each imports only what stands before it, or beside it in its own room.
KERNELS = (
    "kinds", "llvm_ir", "isa", "jit", "scalars", "threads", "micro", "launch", "row", "panels", "sweeps", "peaks",
)  # fmt: skip


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(path): path for path in FILES}


class Import(NamedTuple):
    """One imported module, and whether the import runs when the importing module does, and whether ever."""

    module: str
    at_top: bool
    at_runtime: bool


def resolve(importer, node):
    """Modules that an import statement names; a name that is no module of ours stands for what it is taken from."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        package = importer.split(".") if NAMES[importer].name == "__init__.py" else importer.split(".")[:-1]
        base = ".".join(package[: len(package) - node.level + 1] + ([base] if base else []))
    return [f"{base}.{alias.name}" if f"{base}.{alias.name}" in NAMES else base for alias in node.names]


def find_imports(importer):
    found = []

    def walk(node, at_top, at_runtime):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.extend(Import(module, at_top, at_runtime) for module in resolve(importer, node))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                walk(child, False, False)
            for child in node.orelse:
                walk(child, at_top, at_runtime)
            return
        inside = at_top and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            walk(child, inside, at_runtime)

    walk(ast.parse(NAMES[importer].read_text()), True, True)
    return found


IMPORTS = {name: find_imports(name) for name in NAMES}


def reachable(name):
    """Modules that are loaded when this one is imported."""
    found, new = set(), {name}
    while new:
        found |= new
        new = {i.module for n in new for i in IMPORTS[n] if i.at_top and i.module in NAMES} - found
    return found


LIBRARY = reachable("mla_numba")


def layer(name):
    """0 tiling, 1 kernels, 2 the rest of the library, 3 what stands on it: the command line, its reports, interop."""
    if name.split(".")[0] == "tiling":
        return 0
    if name.startswith("mla_numba.kernels"):
        return 1
    return 2 if name in LIBRARY else 3


def importers_of(package):
    return {name for name, imports in IMPORTS.items() if any(i.module.split(".")[0] == package for i in imports)}


def test_finds_the_modules():
    assert {"tiling", "tiling.planner", "mla_numba", "mla_numba.kernels", "mla_numba.kernels.isa"} <= set(NAMES)
    assert Import("mla_numba.cache", True, True) in IMPORTS["mla_numba"]
    library = "packed weights workspace trace engine prolog cache dims ops reference"
    assert {layer(f"mla_numba.{stem}") for stem in library.split()} == {2}
    assert {layer(f"mla_numba.{stem}") for stem in ("__main__", "cli", "_report", "interop.torch")} == {3}


@pytest.mark.parametrize("package", ["numpy", "numba", "llvmlite", "ml_dtypes", "mla_numba"])
def test_tiling_imports_the_standard_library_only(package):
    assert not [name for name in importers_of(package) if layer(name) == 0]


def test_numba_is_imported_by_kernels_only():
    assert all(layer(name) == 1 for name in importers_of("numba"))


def test_llvmlite_is_imported_where_code_is_emitted_only():
    assert importers_of("llvmlite") <= {f"mla_numba.kernels.{stem}" for stem in EMITTING}


@pytest.mark.parametrize("name", [name for name in NAMES if layer(name) == 1])
def test_kernels_see_kernels_only(name):
    ours = [i.module for i in IMPORTS[name] if i.module.split(".")[0] in PACKAGES]
    assert [module for module in ours if layer(module) != 1] == []


def place(name):
    """Where a module of the kernels stands in `KERNELS`."""
    return KERNELS.index(name.removeprefix("mla_numba.kernels.").split(".")[0])


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("mla_numba.kernels.")])
def test_rooms_of_the_kernels_stand_in_order(name):
    ours = [i.module for i in IMPORTS[name] if i.module.startswith("mla_numba.kernels")]
    assert "mla_numba.kernels" not in ours
    assert [module for module in ours if place(module) > place(name)] == []


@pytest.mark.parametrize("name", NAMES)
def test_arrows_run_one_way(name):
    ours = [i.module for i in IMPORTS[name] if i.at_runtime and i.module.split(".")[0] in PACKAGES]
    assert [module for module in ours if layer(module) > layer(name)] == []


@pytest.mark.parametrize("name", NAMES)
def test_nothing_imports_the_package_that_gathers_the_public_names(name):
    assert "mla_numba" not in [i.module for i in IMPORTS[name]]


def test_no_cycles():
    graph = {name: {i.module for i in imports if i.at_runtime} & set(NAMES) for name, imports in IMPORTS.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(NAMES)


def test_the_oracle_stands_alone():
    assert not [i.module for i in IMPORTS["mla_numba.reference"] if i.module.split(".")[0] in PACKAGES]


@pytest.mark.parametrize("name", NAMES)
def test_tests_and_benches_are_seen_by_nothing(name):
    roots = {i.module.split(".")[0] for i in IMPORTS[name]}
    assert not roots & {"tests", "bench", "helpers", "conftest", "pytest", "hypothesis"}


@pytest.mark.parametrize("name", NAMES)
def test_optional_packages_are_imported_where_they_are_needed(name):
    roots = {i.module.split(".")[0] for i in IMPORTS[name] if i.at_top}
    assert not roots & (OPTIONAL - {"torch", "transformers"} if name.startswith("mla_numba.interop.") else OPTIONAL)
    assert layer(name) == 3 or not roots & COMMAND_LINE


def test_import_compiles_nothing_and_stays_light(tmp_path):
    probe = "import sys, mla_numba\nprint(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = set(run_python("-W", "error", "-c", probe, NUMBA_CACHE_DIR=str(tmp_path)).split())
    assert {"mla_numba", "tiling", "numba"} <= loaded
    assert not loaded & (OPTIONAL | COMMAND_LINE | {"pytest", "hypothesis", "scipy", "pandas"})
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_public_names():
    for package in (__import__("mla_numba"), __import__("tiling")):
        assert len(set(package.__all__)) == len(package.__all__)
        assert all(getattr(package, name) is not None for name in package.__all__)
