"""Tile settings choose a plan and never change a bit: every preset, random settings and the planner's own choice."""

from dataclasses import fields

import numpy as np
import pytest
from helpers import BF16, MODES, THREADS, assert_exact, expect_rows, fullsize, make_call, make_weights, most_workers
from helpers.tile_settings import pass_settings, tile_configs
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_numba import CpuTiling, MlaDims, MlaProlog, MlaTileConfig, PassOptions, pass_options, preset
from tiling import PRESETS

SMALL = MlaDims(130, 3, 50, 68, 33, 34)
SHARED = MlaDims(514, 5, 101, 132, 33, 34)
ARCHS = ("950", "910")
BF16_PRESETS = tuple(name for name in PRESETS if name.endswith("_bf16"))


@pytest.mark.parametrize("t", [1, 8, 37, 130])
@pytest.mark.parametrize("phase", ["decode", "prefill"])
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", PRESETS)
def test_presets(name, arch, phase, t):
    config = preset(name, arch)
    for mode in MODES if t == 37 else ("none" if name in BF16_PRESETS else "b",):
        weights = make_weights(SMALL, mode, seed=t)
        assert_exact(weights, t, n_blocks=9, block_size=16, seed=t, phase=phase, tile_config=config)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", PRESETS)
def test_presets_on_work_that_is_shared_among_threads(name, arch):
    weights = make_weights(SHARED, "none" if name in BF16_PRESETS else "b")
    prologs = assert_exact(weights, 45, n_blocks=3, block_size=16, tile_config=preset(name, arch))
    assert [most_workers(p, 45) for p in prologs] == list(THREADS)


@pytest.mark.parametrize(
    "options", [pass_options(p, t, a) for p in ("decode", "prefill") for t in (8, 65) for a in ARCHS]
)
def test_pass_options(options):
    weights = make_weights(SHARED, "b")
    for config in (None, MlaTileConfig()):
        assert_exact(weights, 20, tile_config=config, options=options)


@pytest.mark.fullsize
@pytest.mark.parametrize(
    ("quant", "name", "arch"),
    [
        ("b", "default", "950"),
        ("b", "decode_b4_s2", "950"),
        ("b", "prefill_b128_s1", "910"),
        ("b", "decode_b64_s2", "910"),
        ("none", "decode_b4_s2_bf16", "950"),
        ("none", "decode_b64_s2_bf16", "910"),
    ],
)
def test_presets_at_full_size(quant, name, arch):
    full = fullsize(quant)
    tokens = np.arange(40, 48)
    slots = np.array([7, -1, 0, 255, 128, 127, 3, 9])
    for phase in ("decode", "prefill"):
        prolog = MlaProlog(full.weights, phase, tile_config=preset(name, arch))
        call = make_call(full.weights.dims, prolog.quantized, 8, 2, 128)
        want = expect_rows(full, tokens, slots, call.cache)
        x, cos, sin = (a[tokens] for a in full.inputs[:3])
        prolog(x, cos, sin, slots, call.cache, call.out)
        call.assert_equals(want)


@settings(max_examples=120)
@given(tile_configs, pass_settings, st.sampled_from(MODES), st.integers(0, 50), st.sampled_from(["decode", "prefill"]))
def test_any_settings(config, options, mode, t, phase):
    weights = make_weights(SMALL, mode)
    assert_exact(weights, t, n_blocks=3, seed=t, phase=phase, tile_config=config, options=options)


@settings(max_examples=25)
@given(tile_configs, pass_settings, st.sampled_from(["b", "none", "ab smooth"]), st.integers(20, 60))
def test_any_settings_on_work_that_is_shared_among_threads(config, options, mode, t):
    weights = make_weights(SHARED, mode)
    assert_exact(weights, t, n_blocks=4, tile_config=config, options=options)


@pytest.mark.parametrize("unroll_list", [[1], [2], [3, 2], [7, 5], [64]])
@pytest.mark.parametrize("t", [1, 5, 12, 13, 37])
def test_unroll_lists(unroll_list, t):
    weights = make_weights(SMALL, "b")
    assert_exact(weights, t, n_blocks=3, tile_config=MlaTileConfig(unroll_list=unroll_list))


def test_the_greatest_counts_draw_each_task_once():
    most = 2**31 - 1
    weights = make_weights(SHARED, "b")
    assert_exact(weights, 45, n_blocks=3, block_size=16, tile_config=CpuTiling(down_grain=most, heads_grain=most))
    others = ("unroll_list", "n_threads", "n_groups")
    counts = CpuTiling(**{f.name: most for f in fields(CpuTiling) if f.name not in others})
    assert_exact(weights, 45, n_blocks=3, block_size=16, tile_config=counts)
    options = PassOptions(*[{-1: most}] * 3)
    assert_exact(weights, 45, n_blocks=3, block_size=16, tile_config=MlaTileConfig(), options=options)


def test_a_config_changed_after_construction_changes_nothing():
    weights = make_weights(SMALL, "b")
    config = MlaTileConfig(unroll_list=[4])
    prolog = MlaProlog(weights, tile_config=config)
    config.unroll_list.append(2)
    config.m_tile = 3
    assert prolog.plan(9).tiles == MlaProlog(weights, tile_config=MlaTileConfig(unroll_list=[4])).plan(9).tiles


def test_one_prolog_of_many_batches_reuses_its_memory():
    weights = make_weights(SHARED, "b")
    prolog = MlaProlog(weights)
    for t in (3, 40, 1, 0, 40, 17):
        x = np.zeros((t, SHARED.hidden_size), BF16)
        tables = np.zeros((t, SHARED.qk_rope_head_dim), BF16)
        call = make_call(SHARED, True, t, 3, 16)
        prolog(x, tables, tables, np.full(t, -1), call.cache, call.out)
        for array in call.out:
            assert not array.view(np.uint8).any()
