"""Imports run one way: a room imports only rooms to its left, here in lists that are written down."""

import ast
from graphlib import TopologicalSorter
from typing import NamedTuple

import pytest
from helpers import ROOT, run_python

PACKAGES = ("tiling", "mla_numba")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
# The rooms of each package. FACADE are modules that users import and that gather names of other rooms.
ROOMS = {
    "tiling": (
        "lazy_names", "check", "modes", "json", "short_repr", "html", "arith", "rates", "roofline", "system", "machine",
        "cpu_tiling", "gemm", "stages", "pypto", "choose", "plan", "planner", "cluster",
    ),
    "mla_numba": (
        "_version", "base", "kernels", "weights", "layouts", "rope_table", "cache_blocks", "cache",
        "indexer_cache", "call", "oracle", "dumps", "indexer", "prolog",
        "attention", "pypto", "tuning", "distributed", "interop", "cli",
    ),
    "mla_numba.kernels": (
        "kinds", "llvm_ir", "isa", "jit", "scalars", "prefetch", "micro", "launch", "pages", "threads", "row", "panels",
        "sweeps", "indexer", "lightning", "attention", "peaks",
    ),
}  # fmt: skip
FACADE = {"mla_numba", "tiling", "mla_numba.__main__", "mla_numba.former_paths", "mla_numba.kernels"} | {
    f"mla_numba.{name}"
    for name in ("dump_names", "inputs", "modes", "ops", "reference", "testing", "tolerance", "verify")
}
OPTIONAL = {"mpi4py", "torch", "transformers", "safetensors", "matplotlib", "optuna", "scipy"}
ONLY_IN = {
    "click": "mla_numba.cli",
    "rich": "mla_numba.cli",
    "simpleeval": "mla_numba.tuning",
    "numba": "mla_numba.kernels",
    "llvmlite": "mla_numba.kernels",
}
COMMAND_LINE = {"click", "rich", "simpleeval"}


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


# What is loaded once every name of the package was asked for: it imports them late.
LIBRARY = {name for i in IMPORTS["mla_numba"] if i.module in NAMES for name in reachable(i.module)}


def importers_of(package):
    return {name for name, imports in IMPORTS.items() if any(i.module.split(".")[0] == package for i in imports)}


def place(module, package):
    """Where a module's room stands in its package; None for what is none of its rooms."""
    if not module.startswith(f"{package}."):
        return None
    room = module.removeprefix(f"{package}.").split(".")[0]
    return ROOMS[package].index(room) if room in ROOMS[package] else None


def test_every_module_is_in_a_room():
    for name in NAMES:
        package = name.split(".")[0]
        assert name in FACADE or place(name, package) is not None, name
        if name.startswith("mla_numba.kernels."):
            assert place(name, "mla_numba.kernels") is not None, name
    for package, rooms in ROOMS.items():
        assert {
            name.removeprefix(f"{package}.").split(".")[0] for name in NAMES if place(name, package) is not None
        } == {*rooms}


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_import_rooms_to_their_left(package):
    up = [
        f"{name} imports {i.module}"
        for name, imports in IMPORTS.items()
        if place(name, package) is not None
        for i in imports
        if place(i.module, package) is not None and place(i.module, package) > place(name, package)
    ]
    assert up == []


def test_only_the_facade_imports_the_facade():
    public = {"mla_numba.kernels", "tiling"}  # packages whose names are taken from the package itself
    found = [
        f"{name} imports {i.module}"
        for name, imports in IMPORTS.items()
        if name not in FACADE
        for i in imports
        if i.module in FACADE and not (i.module in public and not name.startswith(i.module))
    ]
    assert found == []


def test_tiling_sees_tiling_only():
    for package in ("numpy", "numba", "llvmlite", "ml_dtypes", "mla_numba"):
        assert not [name for name in importers_of(package) if name.startswith("tiling")], package


def test_kernels_see_kernels_only():
    kernels = [name for name in NAMES if name.startswith("mla_numba.kernels")]
    ours = {i.module for name in kernels for i in IMPORTS[name] if i.module.split(".")[0] in PACKAGES}
    assert [module for module in ours if not module.startswith("mla_numba.kernels")] == []


@pytest.mark.parametrize("package", ONLY_IN)
def test_packages_stay_in_their_room(package):
    assert [name for name in importers_of(package) if not name.startswith(ONLY_IN[package])] == []


def test_private_names_stay_in_their_room():
    found = []
    for name in NAMES:
        for node in ast.walk(ast.parse(NAMES[name].read_text())):
            if not isinstance(node, ast.ImportFrom):
                continue
            for alias in node.names:
                private = alias.name.startswith("_") and not alias.name.startswith("__")
                source = resolve(name, ast.ImportFrom(node.module, [alias], node.level))[0]
                if private and source.split(".")[:2] != name.split(".")[:2] and source in NAMES:
                    found.append(f"{name} imports {alias.name} of {source}")
    assert found == []


def test_no_cycles():
    graph = {name: {i.module for i in imports} & set(NAMES) - {name} for name, imports in IMPORTS.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(NAMES)


@pytest.mark.parametrize("name", ["arrays", "norm_quant", "products", "reference", "rope", "scatter"])
def test_the_reference_imports_base_only(name):
    stages = {f"mla_numba.oracle.{other}" for other in ("arrays", "norm_quant", "products", "rope", "scatter")}
    ours = {i.module for i in IMPORTS[f"mla_numba.oracle.{name}"] if i.module.split(".")[0] in PACKAGES}
    assert [module for module in ours - stages if not module.startswith("mla_numba.base.")] == []


@pytest.mark.parametrize("name", NAMES)
def test_tests_and_benches_are_seen_by_nothing(name):
    roots = {i.module.split(".")[0] for i in IMPORTS[name]}
    assert not roots & {"tests", "bench", "helpers", "scripts", "shared", "suite", "conftest", "pytest", "hypothesis"}


@pytest.mark.parametrize("name", NAMES)
def test_optional_packages_are_imported_where_they_are_needed(name):
    roots = {i.module.split(".")[0] for i in IMPORTS[name] if i.at_top}
    assert not roots & (OPTIONAL - {"torch", "transformers"} if name.startswith("mla_numba.interop.") else OPTIONAL)
    assert name not in LIBRARY or not roots & COMMAND_LINE


def test_import_compiles_nothing_and_stays_light(tmp_path):
    probe = "import sys; from {} import *; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    loaded, by_numba = (
        set(run_python("-W", "error", "-c", probe.format(package), NUMBA_CACHE_DIR=str(tmp_path)).split())
        for package in ("mla_numba", "numba")
    )
    assert {"mla_numba", "tiling", "numba"} <= loaded
    assert not loaded & (OPTIONAL - {"scipy"} | COMMAND_LINE | {"pytest", "hypothesis", "pandas"})
    assert "scipy" not in loaded - by_numba  # Numba imports SciPy where it is installed
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_public_names():
    for package in (__import__("mla_numba"), __import__("tiling")):
        assert len(set(package.__all__)) == len(package.__all__)
        assert all(getattr(package, name) is not None for name in package.__all__)
