"""The examples in the docstrings of public names run, and say what they print."""

import doctest
import inspect

import pytest

import mla_numba
import tiling

WITH_EXAMPLES = ("MlaProlog", "MlaWeights", "PagedCache")


def examples():
    """Every docstring of a public name that has an example, its methods' too."""
    found = {}
    for package in (mla_numba, tiling):
        for name in package.__all__:
            value = getattr(package, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                finder = doctest.DocTestFinder(exclude_empty=True, recurse=True)
                found |= {test.name: test for test in finder.find(value, name, module=False, globs={})}
    return {name: test for name, test in found.items() if test.examples}


EXAMPLES = examples()


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs(name):
    said = []
    runner = doctest.DocTestRunner()
    result = runner.run(EXAMPLES[name], out=said.append, clear_globs=False)
    assert result.attempted
    assert result.failed == 0, "".join(said)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_main_names_have_an_example(name):
    assert name in EXAMPLES
