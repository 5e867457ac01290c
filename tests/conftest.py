"""Which examples hypothesis draws: the fixed ones of CI, or new ones by the thousand for a nightly search."""

import os
import secrets
from importlib.util import find_spec

import pytest
from hypothesis import HealthCheck, settings

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
