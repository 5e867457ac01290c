"""Docstrings of public names: their examples run, and they say what every argument is and what may be raised."""

import doctest
import importlib
import inspect
import re

import pytest

from mla_numba.call import tuned

MODULES = (
    "mla_numba", "tiling", "mla_numba.distributed", "mla_numba.dump_names", "mla_numba.dumps", "mla_numba.inputs",
    "mla_numba.layouts", "mla_numba.pypto",
    "mla_numba.ops", "mla_numba.reference", "mla_numba.rope_table", "mla_numba.testing", "mla_numba.tolerance",
    "mla_numba.tuning.results", "mla_numba.verify",
)  # fmt: skip
OPTIONAL = ("mla_numba.interop.torch",)  # without torch it cannot be imported
OURS = ("mla_numba", "tiling")
SECTION = re.compile(r"^(Args|Returns|Yields|Raises|Examples):$", flags=re.M)


def public_names():
    """Public classes and functions by the name under which users find them."""
    found = {}
    for name in (*MODULES, *OPTIONAL):
        try:
            module = importlib.import_module(name)
        except ImportError:
            if name not in OPTIONAL:
                raise
            continue
        for public in module.__all__:
            value = getattr(module, public)
            is_named = inspect.isclass(value) or inspect.isfunction(value)
            if is_named and value.__module__.split(".")[0] in OURS and value not in found.values():
                found[f"{name}.{public}"] = value
    return found


def methods_of(cls):
    """What users call of a class: its public functions and `__call__`."""
    found = {}
    for name, value in vars(cls).items():
        function = getattr(value, "__func__", value)
        if inspect.isfunction(function) and (name[0] != "_" or name == "__call__") and name != "_repr_html_":
            found[name] = function
    return found


def is_protocol(cls):
    """Whether others make the objects."""
    return getattr(cls, "_is_protocol", False)


def is_plain(cls):
    """Whether it is a tuple or dataclass whose fields a table or a list in its docstring says."""
    return hasattr(cls, "_fields") or hasattr(cls, "__dataclass_fields__")


# Fields that are no user's: as the kernels take a cache or a call.
FOR_KERNELS = {
    "PagedCache": {"views", "sizes"},
    "IndexerCache": {"views", "sizes"},
    "BoundCall": {"tokens", "caches", "cache_index", "capacity", "dims", "quant"},
}
PUBLIC = public_names()
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}
CLASSES = {name: value for name, value in PUBLIC.items() if inspect.isclass(value)}
METHODS = {f"{name}.{m}": function for name, cls in CLASSES.items() for m, function in methods_of(cls).items()}
CALLED = FUNCTIONS | METHODS


def examples():
    """Every docstring of a public name that has an example, its methods' too."""
    found = {}
    for name, value in PUBLIC.items():
        finder = doctest.DocTestFinder(exclude_empty=True, recurse=True)
        found |= {test.name: test for test in finder.find(value, name, module=False, globs={})}
    return {name: test for name, test in found.items() if test.examples}


EXAMPLES = examples()


def sections(value):
    """The sections of a docstring in Google's style by name, each with its entries: name and text."""
    text = inspect.cleandoc(value.__doc__ or "")
    parts = SECTION.split(text)
    found = {"": parts[0]}
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        entries = re.findall(r"^    (\**\w+): (.+(?:\n {5,}.+)*)", body, flags=re.M)
        found[name] = dict(entries) if name in ("Args", "Raises") else body.strip()
    return found


def arguments_of(function):
    shown = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}
    parameters = inspect.signature(function).parameters.values()
    return [shown.get(p.kind.name, "") + p.name for p in parameters if p.name not in ("self", "cls")]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(tuned.FOLDER_VARIABLE, str(tmp_path / "tuned"))


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs(name):
    said = []
    runner = doctest.DocTestRunner()
    result = runner.run(EXAMPLES[name], out=said.append, clear_globs=False)
    assert result.attempted
    assert result.failed == 0, "".join(said)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_an_example_or_says_where_one_is(name):
    own = [example for example in EXAMPLES if example == name or example.startswith(f"{name}.")]
    elsewhere = re.findall(r"`([\w.]+)`+[^.`]*\shas\s+an\s+example", PUBLIC[name].__doc__)
    assert own or elsewhere
    short = [".".join(example.split(".")[-2:]) for example in EXAMPLES]
    assert all(any(example == there or example.endswith(f".{there}") for example in short) for there in elsewhere)


@pytest.mark.parametrize("name", CALLED)
def test_every_argument_is_described(name):
    entries = sections(CALLED[name]).get("Args", {})
    assert list(entries) == arguments_of(CALLED[name])


@pytest.mark.parametrize("name", [name for name, cls in CLASSES.items() if not (is_plain(cls) or is_protocol(cls))])
def test_every_argument_of_a_constructor_is_described(name):
    entries = sections(CLASSES[name]).get("Args", {})
    assert list(entries) == arguments_of(CLASSES[name].__init__)


@pytest.mark.parametrize("name", [name for name, cls in CLASSES.items() if is_plain(cls)])
def test_every_field_is_described(name):
    cls = CLASSES[name]
    fields = set(getattr(cls, "_fields", None) or cls.__dataclass_fields__) - FOR_KERNELS.get(cls.__name__, set())
    assert [field for field in fields if not re.search(rf"\b{field}\b", cls.__doc__)] == []


@pytest.mark.parametrize("name", CALLED)
def test_what_is_raised_is_in_a_section_of_its_own(name):
    found = sections(CALLED[name])
    assert "Raises" in found or not re.search(r"\b[Rr]aises\b", found[""])
    assert set(found.get("Raises", {})) <= {"TypeError", "ValueError", "OSError", "ImportError", "FileExistsError",
                                            "FileNotFoundError", "ZeroDivisionError"}  # fmt: skip


@pytest.mark.parametrize("name", CALLED)
def test_what_is_returned_has_a_section(name):
    """Where a function has arguments; the first sentence of another says it."""
    hint = inspect.signature(CALLED[name]).return_annotation
    found = sections(CALLED[name])
    if hint in (None, "None", inspect.Signature.empty):
        assert "Returns" not in found
    elif found.get("Args"):
        assert found.get("Returns") or found.get("Yields")
