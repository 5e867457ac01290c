"""One product's weights as the kernels read them, and how they are packed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Self

import numpy as np

from tiling import ceil_div, round_up

from ..base.checks import BF16, Array
from ..base.memory import aligned_empty, untouched_empty, writable_alias
from ..base.short_repr import arrays_text, fields_text, short_repr
from ..kernels import CHOICE, ISA, ISA_VARIABLE
from ..kernels.panels import (
    Matrices,
    Order,
    Share,
    column_offsets,
    min_magnitudes,
    multiply_both_ways,
    pack_panels,
)
from ..kernels.sweeps.arguments import Weight

__all__ = ["PackedGemm", "check_packing", "operand_order", "pack_gemm", "pairs_are_exact", "panel_packing"]

_LEAST_CHUNK = 1 << 18
# To be raised where the order changes in which `kernels.panels` writes panels, for the same NR, KR and offset: files
# of packed weights of the old order are then refused.
_PANEL_ORDER = 1


@dataclass(frozen=True, slots=True, eq=False)
class PackedGemm:
    """One weight, or several side by side, as [batch][panel][part][part_kp / KR][NR][KR].

    `panels` is flat, uint16 (bf16 bits) or int8; `offset` (int32) and `col_scale` (float32) have an element for each
    packed column of an int8 weight; `kp` is the packed length of k and `n_parts` its number of parts. `least_magnitude`
    is that of bf16 weights (`kernels.scalars`); 0, never read, for int8 ones.
    """

    panels: Array
    offset: Array
    col_scale: Array
    kp: int
    n_parts: int
    least_magnitude: int

    def __repr__(self) -> str:
        arrays = {"panels": self.panels, "offset": self.offset, "col_scale": self.col_scale}
        return short_repr(self, fields_text({"kp": self.kp, "n_parts": self.n_parts}), arrays_text(arrays))

    @property
    def least(self) -> int:
        """`least_magnitude`; 0 on CPUs whose bf16 dot product rounds differently, which forces multiply-adds."""
        return self.least_magnitude if self.least_magnitude and pairs_are_exact() else 0

    @property
    def nbytes(self) -> int:
        """Bytes of all three arrays."""
        return self.panels.nbytes + self.offset.nbytes + self.col_scale.nbytes

    @classmethod
    def nothing(cls) -> Self:
        """An empty product, for a weight that is absent."""
        no_scales = np.zeros(0, np.float32)
        return cls(np.zeros(0, np.uint16), np.zeros(0, np.int32), no_scales, kp=0, n_parts=1, least_magnitude=0)

    def part(self, panels: slice, n_panels: int) -> PackedGemm:
        """Some of its `n_panels` panels, as views."""
        n, width = len(self.panels) // n_panels, len(self.offset) // n_panels
        columns = slice(panels.start * width, panels.stop * width)
        return replace(
            self,
            panels=self.panels[panels.start * n : panels.stop * n],
            offset=self.offset[columns],
            col_scale=self.col_scale[columns],
        )

    def realigned(self) -> PackedGemm:
        """The same with panels of its own that begin at a cache line, as those of a pickle need not."""
        panels = aligned_empty(self.panels.shape, self.panels.dtype)
        panels[...] = self.panels
        return replace(self, panels=panels)

    def as_argument(self) -> Weight:
        """As the kernels take it."""
        panels, offset, col_scale = (writable_alias(a.view()) for a in (self.panels, self.offset, self.col_scale))
        return Weight(panels, offset, col_scale, self.kp, self.n_parts, self.least)


def pack_gemm(
    weights: Sequence[Array],
    scales: Sequence[Array | None],
    n_threads: int,
    *,
    n_parts: int = 1,
    head_dim: int | None = None,
    rope_dims: Sequence[int] = (0, 0),
    rope_first: bool = False,
    columns_of_head: Array | None = None,
) -> PackedGemm:
    """Packs weights of one k side by side. Each is (k, n), or (batch, k, n).

    Each has its scale, float32 (n,), if it is int8, else None. With `head_dim`, the columns of a (k, n) weight are cut
    in heads, and each head's are padded to whole panels. The last `rope_dims[i]` columns of weight i, of each of its
    heads, hold interleaved pairs; they are packed as halves, the order in which rope works. With `rope_first` they come
    first, and the others behind them as an operand of bf16 products (`_operand_order`).

    Of several workers each packs what it will read first in a call: an even run of all panels or, of weights in heads,
    of all heads.
    """
    quantised = weights[0].dtype == np.int8
    kr, places, flips = ISA.kr_int8 if quantised else ISA.kr_bf16, ISA.places(quantised), ISA.flips(quantised)
    k = weights[0].shape[-2]
    kp = n_parts * round_up(k // n_parts, kr)
    cuts = [_Cut.of(w, head_dim) for w in weights]
    n_panels = [c.batch * ceil_div(c.n, ISA.nr) for c in cuts]
    dtype = np.int8 if quantised else np.uint16
    panels = untouched_empty(sum(n_panels) * kp * ISA.nr, dtype)
    unit = n_panels[0] // cuts[0].batch if cuts[0].batch > 1 else 1
    n_columns = sum(n_panels) * ISA.nr if quantised else 0
    offset, col_scale = np.zeros(n_columns, np.int32), np.ones(n_columns, np.float32)
    at = 0
    for i, (weight, cut, count) in enumerate(zip(weights, cuts, n_panels, strict=True)):
        columns = _rope_halves(cut.n, rope_dims[i])
        if rope_first:
            nope = cut.n - rope_dims[i]
            columns = np.concatenate([columns[nope:], operand_order(nope)])
        if columns_of_head is not None:
            columns = columns_of_head
        here = panels[at * kp * ISA.nr : (at + count) * kp * ISA.nr]
        source = Matrices(weight.view(dtype).reshape(-1), k, columns, cut.batch_stride, cut.row_stride)
        share = Share(n_threads, sum(n_panels) // unit, unit, at)
        pack_panels(n_threads, n_threads, share, source, Order(kr, n_parts, places, flips), here)
        scale = scales[i]
        if scale is not None:
            by_panel = col_scale[at * ISA.nr : (at + count) * ISA.nr].reshape(cut.batch, -1)
            there = np.flatnonzero(columns >= 0)
            by_panel[:, there] = scale.reshape(cut.batch, cut.n)[:, columns[there]]
        at += count
    if quantised and any(ISA.surplus):
        column_offsets(n_threads, at, panels, kp, places, offset)
    return PackedGemm(panels, offset, col_scale, kp, n_parts, 0 if quantised else _least(panels, n_threads))


@lru_cache(maxsize=1)
def pairs_are_exact() -> bool:
    """Whether this CPU's products of bf16 pairs round as two multiply-adds do.

    Intel and Arm document it so, and the CPUs that were tried do it; one that did not would get multiply-adds.
    """
    if not ISA.bf16_dot:
        return True
    rng = np.random.default_rng(0)
    k = 256

    def values(n: int) -> Array:
        spread = rng.standard_normal(n, dtype=np.float32) * np.exp2(rng.integers(-20, 20, n)).astype(np.float32)
        return spread.astype(BF16).view(np.uint16)

    by_pairs, by_steps = (np.empty(ISA.mr * ISA.nr, np.float32) for _ in range(2))
    multiply_both_ways(1, 2, values(k * ISA.mr), values(k * ISA.nr), k, by_pairs, by_steps)
    return bool((by_pairs == by_steps).all())


def _least(panels: Array, n_threads: int) -> int:
    out = np.empty(ceil_div(len(panels), _LEAST_CHUNK), np.int32)
    min_magnitudes(n_threads, len(out), panels, _LEAST_CHUNK, out)
    return int(out.min(initial=0x7FFF))


def _rope_halves(n: int, rope_dim: int) -> Array:
    """The order in which n columns are packed: the last `rope_dim` as x[0], x[2], ..., x[1], x[3], ..."""
    columns = np.arange(n)
    rope = columns[n - rope_dim :]
    return np.concatenate([columns[: n - rope_dim], rope[0::2], rope[1::2]])


def operand_order(n: int) -> Array:
    """The order of n columns that a bf16 product takes as its k: padded to KR by -1, in pairs the odd k first."""
    columns = np.concatenate([np.arange(n), np.full(-n % ISA.kr_bf16, -1)])
    return columns.reshape(-1, ISA.kr_bf16)[:, ::-1].reshape(-1) if ISA.bf16_dot else columns


@dataclass(frozen=True, slots=True)
class _Cut:
    """How a weight falls into `batch` matrices of n columns."""

    batch: int
    n: int
    batch_stride: int
    row_stride: int

    @classmethod
    def of(cls, weight: Array, head_dim: int | None) -> _Cut:
        if weight.ndim == 3:
            return cls(weight.shape[0], weight.shape[2], weight.shape[1] * weight.shape[2], weight.shape[2])
        if head_dim is None:
            return cls(1, weight.shape[1], 0, weight.shape[1])
        return cls(weight.shape[1] // head_dim, head_dim, head_dim, weight.shape[1])


def panel_packing() -> dict[str, int | str]:
    """All that decides where a weight lies among panels, and the offsets of its columns."""
    packing: dict[str, int | str] = {"order": _PANEL_ORDER, "nr": ISA.nr}
    packing |= {"kr_bf16": ISA.kr_bf16, "order_bf16": ISA.bf16_order.name}
    packing |= {"kr_int8": ISA.kr_int8, "order_int8": ISA.int8_order.name}
    return packing | {"a_offset": _a_offset(), "odd_k_first": int(ISA.bf16_dot)}


def _a_offset() -> int | str:
    """What an int8 activation has beyond its code: where it is not the same in each step of KR, for each."""
    same = len(set(ISA.surplus)) == 1
    return ISA.surplus[0] if same else " ".join(map(str, ISA.surplus))


def check_packing(source: str | os.PathLike[str], found: dict[str, int | str], isa: str) -> None:
    """Raises `ValueError` naming the source of panels that these kernels would read otherwise."""
    if found != panel_packing():
        otherwise = f", or take these by {ISA_VARIABLE}={isa}" if isa in CHOICE.others else ""
        raise ValueError(
            f"{source}: expected panels as {ISA.name} reads them ({_as_text(panel_packing())}), got those of "
            f"{isa} ({_as_text(found)}); pack the weights again on this machine{otherwise}"
        )


def _as_text(packing: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in packing.items())[:200]
