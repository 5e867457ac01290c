"""A comparison as on a CPU that has no more than some instruction set."""

import os

import compare_peers
import pytest
from shared.held_to import HELD_TO, LIMITS, limits_set, variables

from mla_numba.kernels import ISAS
from mla_numba.kernels.micro.table import choose_isa, target_features
from tiling.machine import CPU_FLAGS

EVERYTHING = frozenset().union(*(isa.features for isa in ISAS.values()))


@pytest.mark.parametrize("isa", HELD_TO)
def test_what_is_set_chooses_that_instruction_set(isa):
    assert isa in CPU_FLAGS
    wanted = variables(isa)
    assert {*LIMITS, "MLA_NUMBA_ISA", "NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"} == {*wanted}
    if isa not in ISAS:
        pytest.skip(f"there are no kernels of {isa}")
    features = target_features(wanted["NUMBA_CPU_NAME"], wanted["NUMBA_CPU_FEATURES"], EVERYTHING)
    assert choose_isa("", {}, features).isa is choose_isa(wanted["MLA_NUMBA_ISA"], {}, features).isa is ISAS[isa]


def test_the_command_starts_anew_held_to_it(monkeypatch):
    started = []
    monkeypatch.setattr(os, "execve", lambda _path, _command, environment: started.append(environment))
    monkeypatch.setenv("FBGEMM_ENABLE_INSTRUCTIONS", "AVX512")
    compare_peers.ensure_environment(1, "avx2")
    assert started[0].items() >= variables("avx2").items()
    monkeypatch.setattr(os, "environ", started[0])
    compare_peers.ensure_environment(1, "avx2")
    assert len(started) == 1
    assert limits_set(started[0]) == (
        "ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 FBGEMM_ENABLE_INSTRUCTIONS=AVX2"
    )
    assert limits_set({}) == ""
