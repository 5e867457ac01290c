"""Options of the suite, the session that its benches share, and order and headings of its tables."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
from suite.attention_cases import AttentionCases
from suite.events import Events
from suite.product_cases import ProductCases
from suite.prolog_cases import PrologCases
from suite.rotation import STATES
from suite.session import TOKENS, Suite, settings, threading_layer, token_id, versions

NUMBERS = pytest.StashKey[list[int]]()
EVENTS = pytest.StashKey[Events]()
SKIPPED = pytest.StashKey[dict[str, None]]()  # each reason once, in order


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mla_numba")
    default = ",".join(map(str, TOKENS))
    group.addoption("--tokens", metavar="T,...", default=default, help=f"Numbers of tokens; {default} if not given.")
    group.addoption("--weights", choices=STATES, help="Only with weights cold, or only warm.")
    group.addoption("--no-peers", action="store_true", help="Only mla_numba.")
    group.addoption("--slow", action="store_true", help="Also what takes half a minute a round: an empty kernel cache.")
    group.addoption("--tiny", action="store_true", help="Small dimensions: to try the benches, not the machine.")
    group.addoption("--events", action="store_true", help="Say what mla-numba bench follows on standard output.")
    group.addoption("--after", metavar="NAME", help="Only the benches behind this one.")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes half a minute a round; runs with --slow")
    config.stash[NUMBERS] = _tokens(config)
    if config.getoption("events"):
        seconds = 0.0 if config.getoption("tiny") else float(config.getoption("benchmark_max_time"))
        config.stash[EVENTS] = Events(config, lambda: _head(config), seconds)
        config.pluginmanager.register(config.stash[EVENTS])


def _tokens(config: pytest.Config) -> list[int]:
    text = config.getoption("tokens")
    try:
        tokens = sorted(set(map(int, text.split(","))))
    except ValueError:
        raise pytest.UsageError(f"--tokens: expected integers with commas, got {text!r}") from None
    if tokens[0] < 1:
        raise pytest.UsageError(f"--tokens: expected numbers > 0, got {tokens[0]}")
    return tokens


def _head(config: pytest.Config) -> dict[str, Any]:
    """What the results say of the session, as pytest-benchmark's JSON has it."""
    commit = config.hook.pytest_benchmark_generate_commit_info(config=config)
    return {"machine_info": settings(config.getoption("tiny")), "commit_info": commit}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    state, after = config.getoption("weights"), config.getoption("after")

    def wanted(item: pytest.Item) -> bool:
        params: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
        return (
            (state is None or params.get("state", state) == state)
            and (config.getoption("slow") or item.get_closest_marker("slow") is None)
            and not (config.getoption("no_peers") and not params.get("implementation", "mla_numba").startswith("mla_"))
        )

    kept = [item for item in items if wanted(item)]
    names = [item.nodeid for item in kept]
    if after in names:
        kept = kept[names.index(after) + 1 :]
    left_out = [item for item in items if item not in kept]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`t` takes each number of tokens; a module of benches says itself what else goes with it."""
    cases = getattr(metafunc.module, "cases_of", {}).get(metafunc.function.__name__)
    tokens = metafunc.config.stash[NUMBERS]
    if cases is not None:
        metafunc.parametrize(*cases(tokens))
    elif "t" in metafunc.fixturenames:
        metafunc.parametrize("t", tokens, ids=token_id)


@pytest.fixture(scope="session")
def suite(request: pytest.FixtureRequest) -> Suite:
    config = request.config
    events = config.stash.get(EVENTS, None)
    return Suite(
        tiny=config.getoption("tiny"),
        max_seconds=float(config.getoption("benchmark_max_time")),
        before_timing=events.timing if events else lambda: None,
    )


@pytest.fixture(scope="session")
def prolog_cases(suite: Suite) -> PrologCases:
    return PrologCases(suite)


@pytest.fixture(scope="session")
def product_cases(suite: Suite) -> ProductCases:
    return ProductCases(suite)


@pytest.fixture(scope="session")
def attention_cases(suite: Suite, prolog_cases: PrologCases) -> AttentionCases:
    return AttentionCases(suite, prolog_cases)


def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, Any]:
    """Instead of all that pytest-benchmark finds, which differs from run to run, and so would warn at each compare."""
    return settings(config.getoption("tiny"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep why benches are skipped."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        item.config.stash.setdefault(SKIPPED, {})[reason] = None
    return report


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Add what may differ between runs that are compared, and what was left out."""
    left_out = list(config.stash.get(SKIPPED, {}))
    output_json["mla_numba"] = {
        "versions": versions(), "threading_layer": threading_layer(), "left_out": left_out,
    }  # fmt: skip


def pytest_benchmark_group_stats(benchmarks: list[dict[str, Any]], group_by: str) -> Any:
    """Groups in the order in which they ran: by name, T=128 would come before T=8."""
    if group_by != "group":
        return None
    groups: dict[str | None, list[dict[str, Any]]] = {}
    for bench in benchmarks:
        groups.setdefault(bench["group"], []).append(bench)
    return list(groups.items())
