"""What reads the prolog's outputs: its indexer, with it or alone, the lightning index, sparse attention."""

from __future__ import annotations

import pytest
from shared.contenders import OURS

from .attention_cases import ATTENTION_PEERS, INDEX_PEERS
from .rotation import STATES


@pytest.mark.parametrize("state", STATES)
def test_prolog_with_indexer(benchmark, suite, attention_cases, t, state):
    attention_cases.fused(t).time(suite, benchmark, f"prolog with its indexer, T = {t}", OURS, state)


@pytest.mark.parametrize("state", STATES)
def test_indexer_prolog(benchmark, suite, attention_cases, t, state):
    attention_cases.alone(t).time(suite, benchmark, f"indexer prolog, T = {t}", OURS, state)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("implementation", [OURS, *INDEX_PEERS])
def test_lightning_index(benchmark, suite, attention_cases, t, implementation, state):
    case = attention_cases.index(implementation, t)
    case.time(suite, benchmark, f"lightning index, T = {t}", implementation, state)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("implementation", [OURS, *ATTENTION_PEERS])
def test_sparse_attention(benchmark, suite, attention_cases, t, implementation, state):
    case = attention_cases.attention(implementation, t)
    case.time(suite, benchmark, f"sparse attention, T = {t}", implementation, state)
