"""Each weight of the prolog as a single product: ours, and the operators that other libraries have for it."""

from __future__ import annotations

import pytest
from shared.contenders import OURS

from .product_cases import PRODUCTS
from .rotation import STATES, rotate
from .session import Stopwatch, token_id

HEADS_CLOCK = Stopwatch()


def _cases(tokens):
    """Implementations vary before numbers of tokens, so that a product's result is worked out once a number."""
    return ("product", "t", "implementation"), [
        pytest.param(product, t, implementation, id=f"{product}-{token_id(t)}-{implementation}")
        for product, implementations in PRODUCTS.items()
        for t in tokens
        for implementation in implementations
        if (product, implementation) != ("heads", OURS)
    ]


def _heads_cases(tokens):
    return ("product", "implementation", "t"), [
        pytest.param("heads", OURS, t, id=f"heads-{OURS}-{token_id(t)}") for t in tokens
    ]


cases_of = {"test_product": _cases, "test_heads_product": _heads_cases}


@pytest.mark.parametrize("state", STATES)  # the fastest to vary: what was prepared serves both
def test_product(benchmark, suite, product_cases, product, implementation, t, state):
    contender = product_cases.contender(product, implementation, t)
    suite.time_calls(
        benchmark,
        f"{product_cases.title(product)}, T = {t}",
        implementation,
        contender.calls,
        state,
        product_cases.case(product, t).work,
        made_of=contender.made_of,
        verified=verified(implementation),
    )


@pytest.mark.benchmark(timer=HEADS_CLOCK.read)  # runs during the sweep that is nearly all this product
@pytest.mark.parametrize("state", STATES)
def test_heads_product(benchmark, suite, product_cases, product, implementation, t, state):
    contender = product_cases.contender(product, implementation, t)
    suite.describe(
        benchmark,
        f"{product_cases.title(product)}, T = {t}, weights {state}",
        implementation,
        made_of=contender.made_of,
        verified=verified(implementation),
    )
    n_sets = len(contender.calls)
    benchmark.extra_info["weights"] = f"cold, {n_sets} sets in turns" if state == "cold" else "warm, one set"
    call = rotate(contender.calls, state)
    rounds = suite.rounds(call())
    work = product_cases.case(product, t).work
    suite.between_probes(benchmark, work, lambda: benchmark.pedantic(lambda: HEADS_CLOCK.add(call()), rounds=rounds))


def verified(implementation):
    return "bit for bit against the reference" if implementation == OURS else "within 2^-7 of the reference's product"
