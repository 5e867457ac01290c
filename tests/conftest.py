"""Which examples hypothesis draws: the fixed ones of CI, or new ones by the thousand for a nightly search.

And how a run of the whole suite is shared among processes.
"""

import os
import secrets
from importlib.util import find_spec

import pytest
from hypothesis import HealthCheck, settings

# Before a library reads it: threads that spin while they wait would take the cores from the other tests.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MPIR_CVAR_CH4_PROGRESS_THROTTLE", "1")  # likewise ranks of MPICH

if "ATEN_CPU_CAPABILITY" in os.environ and find_spec("torch"):
    from shared.torch_machine import separate_compiler_cache

    separate_compiler_cache()

# The same examples on every machine, without a database of earlier failures and without a clock.
settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
# New examples in each run. `print_blob`: a failure says what to add to the test to meet it again.
settings.register_profile(
    "nightly",
    deadline=None,
    database=None,
    print_blob=True,
    max_examples=1000,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("MLA_HYPOTHESIS_PROFILE", "fixed"))


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Small models of transformers by kind, see `hf_models.KINDS`, each saved once."""
    from helpers.hf_models import Saved

    made = {}

    def get(kind="moe"):
        if kind not in made:
            made[kind] = Saved(tmp_path_factory.mktemp("model"), kind)
        return made[kind]

    return get


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """An object of every public class, by its class."""
    from helpers.public_objects import make_objects

    return {type(value): value for value in make_objects(tmp_path_factory.mktemp("objects"))}


@pytest.fixture
def quiet_machine(monkeypatch):
    """Others take nothing of it, as the commands see it."""
    from helpers.quiet import QUIET

    for owner, name, value in QUIET:
        monkeypatch.setattr(owner, name, value)


@pytest.fixture
def busy_machine(monkeypatch):
    """Others take a core of it, as the commands see it."""
    from mla_numba.tuning.conditions import Conditions

    monkeypatch.setattr(Conditions, "reasons", property(lambda self: ["others took 0.97 of 2 cores"]))


MOST_PROCESSES = 4  # each loads all libraries and starts a thread for each core
# What takes longest comes first, so that no process is left alone with it at the end. test_isa.py then finds most of
# its kernels: those of test_guard_pages.py.
LONGEST = (
    "test_guard_pages.py",
    "test_docs.py",
    "test_bench_suite.py",
    "test_cli_tune.py",
    "test_cli_sweep.py",
    "test_distributed.py",
    "test_cold_start.py",
    "test_cli_interrupts.py",
    "test_cli.py",
    "test_interop_hf.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """The whole suite runs in a process for each core, a file in one of them; files that are named run in this one.

    `-n 0` runs all in this one, `-n 3` anything in three.
    """
    option = config.option
    if hasattr(config, "workerinput"):  # this is one of the processes
        for name in [name for name in os.environ if name.startswith("PYTEST_XDIST_")]:
            del os.environ[name]  # else a bench that a test starts takes itself for one of them, and times nothing
        return
    if not config.pluginmanager.hasplugin("xdist"):
        return
    if option.numprocesses is None and config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        option.numprocesses, option.maxprocesses = "auto", option.maxprocesses or MOST_PROCESSES
    if option.numprocesses and option.dist == "no":
        option.dist, option.loadscopereorder = "loadfile", False


def pytest_collection_modifyitems(items):
    """The longest files first, the others in their order; all files whole."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """A random search gets a seed that the header can print, before hypothesis takes the option."""
    asked = config.getoption("--hypothesis-profile")
    if asked:
        settings.load_profile(asked)
    if not settings.default.derandomize and config.getoption("--hypothesis-seed") is None:
        config.option.hypothesis_seed = str(secrets.randbelow(2**32))


def pytest_report_header(config):
    seed = config.getoption("--hypothesis-seed")
    how = "the same examples in every run" if settings.default.derandomize else f"--hypothesis-seed={seed}"
    return f"hypothesis: {settings.default.max_examples} examples a test, {how}"
