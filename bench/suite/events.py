"""What `mla-numba bench` follows: the benches to come, when one begins, when it is timed, and what came of it.

With `--events` each is a line of JSON on standard output behind `PREFIX`, written between benches; so nothing that was
measured is lost, however the session ends.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from typing import Any

import pytest

from .expected import expected_seconds
from .session import threading_layer, versions

__all__ = ["PREFIX", "Events"]

PREFIX = "mla-numba bench: "


class Events:
    """The plugin. `head` makes what the results say of the session: see pytest-benchmark's JSON."""

    def __init__(self, config: pytest.Config, head: Callable[[], dict[str, Any]], max_seconds: float) -> None:
        self._config, self._head, self._max_seconds = config, head, max_seconds

    def say(self, **event: Any) -> None:
        """Writes an event."""
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        assert reporter is not None
        reporter.ensure_newline()
        reporter.write_line(PREFIX + json.dumps(event))
        reporter.flush()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """What comes, with the seconds that each may take."""
        seconds = {item.nodeid: round(expected_seconds(item.nodeid, self._max_seconds), 2) for item in session.items}
        head = self._head() | {"datetime": datetime.now(UTC).isoformat()}
        self.say(head=head, benches=seconds)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A bench begins to prepare."""
        self.say(start=nodeid)

    def timing(self) -> None:
        """The bench is timed from now on: nothing else should work on this machine."""
        self.say(timing=True)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[Any]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """A bench is over, or failed while it was prepared or cleaned up: says at once what came of it."""
        report = yield
        suite = {"versions": versions(), "threading_layer": threading_layer()}
        if report.failed or report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
            self.say(done=item.nodeid, suite=suite, outcome=report.outcome, reason=reason.removeprefix("Skipped: "))
        elif report.when == "call":
            fixture = getattr(item, "funcargs", {}).get("benchmark")
            timed = fixture is not None and fixture.stats is not None
            bench = fixture.stats.as_dict() if timed else None
            self.say(done=item.nodeid, suite=suite, outcome="passed", bench=bench)
        return report
