"""Random inputs of one prolog call, for the command line, tests and benches."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..base.checks import BF16, Array, check_int
from ..base.dims import MlaDims
from ..base.short_repr import arrays_text, short_repr

__all__ = ["Inputs", "random_inputs"]


class Inputs(NamedTuple):
    """What a call takes besides the cache, in its order. `random_inputs` has an example.

    | field       | shape  | dtype |
    |-------------|--------|-------|
    | x           | (T, H) | bf16  |
    | cos, sin    | (T, R) | bf16  |
    | cache_index | (T,)   | int64 |
    """

    x: Array
    cos: Array
    sin: Array
    cache_index: Array

    def __repr__(self) -> str:
        return short_repr(self, arrays_text(self._asdict()))


def random_inputs(dims: MlaDims, t: int, seed: int, capacity: int) -> Inputs:
    """Inputs of `t` tokens, the same for the same arguments.

    x is N(0, 1). Each token has its own angles, and both halves of cos and sin are equal, as in the model's tables. The
    slots are distinct.

    Args:
        dims: Dimensions of the prolog.
        t: Tokens, from 0 on.
        seed: Of the random numbers, from 0 on.
        capacity: Slots of the cache.

    Returns:
        The first four arguments of a call.

    Raises:
        TypeError: A number is no int.
        ValueError: It is negative, or the cache has fewer slots than tokens.

    Examples:
        >>> import mla_numba as mla
        >>> from mla_numba.inputs import random_inputs
        >>> random_inputs(mla.MlaDims(256, 4, 96, 64, 32, 32), t=3, seed=0, capacity=32)
        <Inputs: x (3, 256) bf16, cos (3, 32) bf16, sin (3, 32) bf16, cache_index (3,) int64, 1.9 kB>
    """
    check_int("t", t, 0)
    check_int("capacity", capacity, t)
    rng = np.random.default_rng((check_int("seed", seed, 0), 1))  # not the stream that weights of this seed come from
    x = rng.standard_normal((t, dims.hidden_size), dtype=np.float32).astype(BF16)
    half = rng.uniform(0, 2 * np.pi, (t, dims.qk_rope_head_dim // 2))
    angles = np.concatenate([half, half], axis=1)
    slots = rng.permutation(capacity)[:t].astype(np.int64)
    return Inputs(x, np.cos(angles).astype(BF16), np.sin(angles).astype(BF16), slots)
