"""Options of the suite, the session that its benches share, and order and headings of its tables."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
from suite.product_cases import ProductCases
from suite.prolog_cases import PrologCases
from suite.rotation import STATES
from suite.session import TOKENS, Suite, settings, threading_layer, versions

SKIPPED = pytest.StashKey[dict[str, None]]()  # each reason once, in order


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mla_numba")
    group.addoption("--tokens", metavar="T,...", help=f"Only these of {','.join(map(str, TOKENS))} tokens.")
    group.addoption("--weights", choices=STATES, help="Only with weights cold, or only warm.")
    group.addoption("--no-peers", action="store_true", help="Only mla_numba.")
    group.addoption("--slow", action="store_true", help="Also what takes half a minute a round: an empty kernel cache.")
    group.addoption("--tiny", action="store_true", help="Small dimensions: to try the benches, not the machine.")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes half a minute a round; runs with --slow")
    unknown = _tokens(config) - set(TOKENS)
    if unknown:
        raise pytest.UsageError(f"--tokens: expected some of {TOKENS}, got {sorted(unknown)}")


def _tokens(config: pytest.Config) -> set[int]:
    text = config.getoption("tokens")
    try:
        return set(map(int, text.split(","))) if text else set(TOKENS)
    except ValueError:
        raise pytest.UsageError(f"--tokens: expected integers with commas, got {text!r}") from None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    tokens, state = _tokens(config), config.getoption("weights")

    def wanted(item: pytest.Item) -> bool:
        params: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
        return (
            params.get("t", min(tokens)) in tokens
            and (state is None or params.get("state", state) == state)
            and (config.getoption("slow") or item.get_closest_marker("slow") is None)
            and not (config.getoption("no_peers") and not params.get("implementation", "mla_numba").startswith("mla_"))
        )

    left_out = [item for item in items if not wanted(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if wanted(item)]


@pytest.fixture(scope="session")
def suite(request: pytest.FixtureRequest) -> Suite:
    config = request.config
    return Suite(tiny=config.getoption("tiny"), max_seconds=float(config.getoption("benchmark_max_time")))


@pytest.fixture(scope="session")
def prolog_cases(suite: Suite) -> PrologCases:
    return PrologCases(suite)


@pytest.fixture(scope="session")
def product_cases(suite: Suite) -> ProductCases:
    return ProductCases(suite)


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
