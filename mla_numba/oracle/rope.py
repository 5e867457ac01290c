"""Rotary position embedding of interleaved pairs, in plain NumPy."""

import numpy as np

from .arrays import F32, Array


@np.errstate(all="ignore")
def rotate_half(input_tensor: Array) -> Array:
    """Give ``[x2 * -1, x1 + 0]`` for the halves ``[x1, x2]`` of the last axis; the ``+ 0`` turns -0 into +0.

    `mla_numba.rotate_half` has an example.

    Args:
        input_tensor: Floats whose last axis is even.

    Returns:
        The other order, of the same shape and dtype.

    Raises:
        ValueError: The last axis is odd.
    """
    n = input_tensor.shape[-1]
    if n % 2:
        raise ValueError(f"input_tensor: expected an even last axis, got shape {input_tensor.shape}")
    x1, x2 = input_tensor[..., : n // 2], input_tensor[..., n // 2 :]
    number = input_tensor.dtype.type
    return np.concatenate([x2 * number(-1), x1 + number(0)], axis=-1)


def rope_v2(x: Array, cos: Array, sin: Array, tile_config: object = None) -> Array:
    """Rotary position embedding (Su et al., 2021); pairs come interleaved and leave as halves.

    With ``y = x[0], x[2], ..., x[1], x[3], ...`` in fp32: ``y*cos + rotate_half(y)*sin``, two products and one add,
    then x's dtype. Both halves of cos and sin are read as given. `mla_numba.rope_v2` has an example.

    Args:
        x: Floats (T, R).
        cos: Cosines (T, R).
        sin: Sines (T, R).
        tile_config: About tiles only; changes no bit.

    Returns:
        Rotated floats (T, R) of x's dtype.

    Raises:
        ValueError: cos or sin has another shape.
    """
    return rope(x, cos, sin)


def rope_3d_v2(x: Array, cos: Array, sin: Array) -> Array:
    """Rotary position embedding as in rope_v2 of each head. `mla_numba.rope_v2` has an example.

    Args:
        x: Floats (T, N, R).
        cos: Cosines (T, R).
        sin: Sines (T, R).

    Returns:
        Rotated floats (T, N, R) of x's dtype.

    Raises:
        ValueError: cos or sin has another shape.
    """
    return rope(x, cos[:, None, :], sin[:, None, :])


@np.errstate(all="ignore")
def rope(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate x (..., R) with cos and sin that broadcast to it."""
    for name, table in (("cos", cos), ("sin", sin)):
        if table.shape[0] != x.shape[0] or table.shape[-1] != x.shape[-1]:
            raise ValueError(
                f"{name}: expected ({x.shape[0]}, {x.shape[-1]}), got ({table.shape[0]}, {table.shape[-1]})"
            )
    x_fp32 = x.astype(np.float32)
    x_fp32 = np.concatenate([x_fp32[..., 0::2], x_fp32[..., 1::2]], axis=-1)
    x_embed: F32 = x_fp32 * cos.astype(np.float32) + rotate_half(x_fp32) * sin.astype(np.float32)
    return x_embed.astype(x.dtype)
