"""Calls of the reference operator's entry points, by the names of their 26 arguments."""

import numpy as np
import pytest

import mla_numba as mla
from mla_numba import MlaDims, RopeTileShapeConfig, preset
from mla_numba.oracle.bits import check_output, reference_run

from .calls import assert_none, assert_same_bits, make_cache, make_inputs, make_output, make_weights

DIMS = MlaDims(130, 3, 50, 68, 33, 34)
FRACTAL = MlaDims(130, 3, 50, 64, 33, 32)
T, BLOCKS, BLOCK_SIZE = 19, 3, 16


def words(text):
    return text.split()


ENTRIES = {
    "compute": mla.mla_prolog_quant_compute,
    "p": mla.mla_prolog_quant_p,
    "d": mla.mla_prolog_quant_d,
}
ARGUMENTS = words("""
    token_x w_dq w_uq_qr dequant_scale w_uk w_dkv_kr gamma_cq gamma_ckv cos sin cache_index kv_cache kr_cache
    k_scale_cache q_norm_out q_norm_scale_out query_nope_out query_rope_out kv_cache_out kr_cache_out k_scale_cache_out
    epsilon_cq epsilon_ckv cache_mode tile_config rope_cfg
""")
NO_SCALE = np.zeros((0, 1), np.float32)
ROPE_TILES = RopeTileShapeConfig([32, 64], [32, 32, 128], [16, 128, 128, 128])


class Case:
    """The 26 arguments by name, and what the reference makes of them."""

    def __init__(self, quant, dims=DIMS, cache_mode="PA_BSND", packed=False, in_place=True, **changes):
        quantized = quant == "b"
        self.weights = weights = make_weights(dims, quant, epsilon_cq=1e-3, epsilon_ckv=1e-4)
        inputs = make_inputs(dims, T, BLOCKS * BLOCK_SIZE)
        self.source = make_cache(dims, quantized, BLOCKS, BLOCK_SIZE, cache_mode)
        self.target = self.source if in_place else make_cache(dims, quantized, BLOCKS, BLOCK_SIZE, cache_mode, seed=1)
        self.out = make_output(dims, quantized, T)
        self.in_place = in_place
        self.before = self.source.copy()
        self.want = reference_run(weights, *inputs, self.source)
        scale = weights.dequant_scale_w_uq_qr
        given = {
            "w_dq": weights.w_dq,
            "w_uq_qr": weights.w_uq_qr,
            "dequant_scale": NO_SCALE if scale is None else scale.reshape(-1, 1),
            "w_uk": weights.w_uk,
            "w_dkv_kr": weights.w_dkv_kr,
            "gamma_cq": weights.gamma_cq,
            "gamma_ckv": weights.gamma_ckv,
        }
        if packed:
            given = dict.fromkeys(given) | {"w_dq": weights.pack()}
        self.arguments = {
            "token_x": inputs.x,
            **given,
            "cos": inputs.cos,
            "sin": inputs.sin,
            "cache_index": inputs.cache_index,
            "kv_cache": self.source.kv,
            "kr_cache": self.source.kr,
            "k_scale_cache": self.source.k_scale,
            **{
                f"{name}_out": getattr(self.out, name)
                for name in ("q_norm", "q_norm_scale", "query_nope", "query_rope")
            },
            "kv_cache_out": self.target.kv,
            "kr_cache_out": self.target.kr,
            "k_scale_cache_out": self.target.k_scale,
            "epsilon_cq": 1e-3,
            "epsilon_ckv": 1e-4,
            "cache_mode": cache_mode,
            "tile_config": preset("default"),
            "rope_cfg": ROPE_TILES,
        }
        assert list(self.arguments) == ARGUMENTS

    def assert_computes(self, entry, **changes):
        assert entry(*(self.arguments | changes).values()) is None
        assert_none(check_output(self.out, self.target, self.want))
        if not self.in_place:
            self.assert_source_untouched()

    def assert_source_untouched(self):
        for name, array in self.before.arrays().items():
            assert_same_bits(name, self.source.arrays()[name], array)

    def refuses(self, entry, error, match, **changes):
        written = [*self.out, *self.target.arrays().values()]
        before = [None if a is None else a.copy() for a in written]
        with pytest.raises(error, match=match):
            entry(**(self.arguments | changes))
        for i, (array, old) in enumerate(zip(written, before, strict=True)):
            if array is not None:
                assert_same_bits(f"array {i}", array, old)
        self.assert_source_untouched()
