"""The whole prolog: every mode of ours, and what people build of other libraries, in quant mode "b"."""

from __future__ import annotations

import pytest
from shared.contenders import OURS

from .prolog_cases import MODES, PEERS
from .rotation import STATES


@pytest.mark.parametrize("state", STATES)  # the fastest to vary: what was prepared serves both
@pytest.mark.parametrize("implementation", [*(f"{OURS}-{mode}" for mode in MODES), *PEERS])
def test_prolog(benchmark, suite, prolog_cases, t, implementation, state):
    contender = prolog_cases.contender(implementation, t)
    is_ours = implementation.startswith(OURS)
    # A peer's limit is that of our plan: the same products on weights as they are stored.
    plan = prolog_cases.prologs(implementation.partition("-")[2] if is_ours else "b")[0].plan(t)
    suite.time_calls(
        benchmark,
        f"prolog, T = {t}",
        implementation,
        contender.calls,
        state,
        plan.work,
        made_of=contender.made_of,
        verified="bit for bit against the reference" if is_ours else "within the reference operator's tolerances",
    )
