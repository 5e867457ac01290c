"""Weights as the kernels read them: packed once, in their own types."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from typing import Any, Self

import numpy as np

from tiling import ceil_div, round_up

from ..base.checks import (
    BF16,
    Array,
    check_epsilon,
    expect_type,
)
from ..base.dims import MlaDims
from ..base.head_shard import HeadShard
from ..base.memory import aligned_empty, untouched_empty, writable_alias
from ..base.modes import Numerics, QuantMode
from ..base.short_repr import arrays_text, dims_text, fields_text, short_repr, size_text
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
from ..kernels.sweeps.arguments import Layer, Norm, Weight
from .mapped_file import read_arrays, write_arrays
from .packed_facts import FACTS, PRODUCTS, check_mode, check_shard, gemm_sizes, is_vector, read_facts

__all__ = ["PackedGemm", "PackedWeights"]

_LEAST_CHUNK = 1 << 18
# To be raised where the order changes in which `kernels.panels` writes panels, for the same NR, KR and offset: files
# of packed weights of the old order are then refused.
_PANEL_ORDER = 1
_PARTS = ("panels", "offset", "col_scale")
_VECTORS = ("gamma_cq", "gamma_ckv", "smooth_scales_cq")


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
        """A product that is not there."""
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

    def as_argument(self) -> Weight:
        """As the kernels take it."""
        panels, offset, col_scale = (writable_alias(a.view()) for a in (self.panels, self.offset, self.col_scale))
        return Weight(panels, offset, col_scale, self.kp, self.n_parts, self.least)


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeights:
    """`MlaWeights` in the order of the kernels: what `MlaWeights.pack`, `load` and `mla-numba pack` make.

    | field                | is                                                              |
    |----------------------|-----------------------------------------------------------------|
    | dims, quant          | as of `MlaWeights`                                              |
    | down                 | w_dq and w_dkv_kr side by side                                  |
    | up                   | w_uq_qr by heads                                                |
    | uk                   | w_uk                                                            |
    | gamma_cq, gamma_ckv  | (Rq,), (C,) float32                                             |
    | smooth_scales_cq     | (Rq,) float32, or no elements                                   |
    | epsilon_cq           | float32, of the query's norm                                    |
    | epsilon_ckv          | float32, of the key's norm                                      |
    | head_shard           | which heads of a layer these are, a `HeadShard`; None for all   |

    Examples:
        >>> import mla_numba as mla
        >>> weights = mla.MlaWeights.random(mla.MlaDims(256, 4, 96, 64, 32, 32))
        >>> weights.pack().save("layer.mla")
        >>> packed = mla.PackedWeights.load("layer.mla", verify=True)  # mapped, and shared between processes
        >>> packed.dims == weights.dims, packed.quant
        (True, 'b')
    """

    dims: MlaDims
    quant: QuantMode
    down: PackedGemm
    up: PackedGemm
    uk: PackedGemm
    gamma_cq: Array
    gamma_ckv: Array
    smooth_scales_cq: Array
    epsilon_cq: np.float32
    epsilon_ckv: np.float32
    head_shard: HeadShard | None = None

    def shard(self, rank: int, size: int) -> PackedWeights:
        """The weights of one of `size` ranks that share the layer by heads: views of these.

        Args:
            rank: The rank, from 0.
            size: The number of ranks, up to the number of heads, which it need not divide.

        Returns:
            The rank's weights, whose `head_shard` says which heads they are. `MlaWeights.shard` has an example.

        Raises:
            TypeError: `rank` or `size` is no int.
            ValueError: There is no such rank, there are more ranks than heads, or the weights are a shard already.
        """
        if self.head_shard is not None:
            raise ValueError(f"shard: expected the weights of all heads, got {self.head_shard}")
        n_heads = self.dims.num_attention_heads
        shard = HeadShard(rank, size, n_heads)
        heads = slice(shard.heads.start, shard.heads.stop)
        return replace(
            self,
            dims=replace(self.dims, num_attention_heads=len(shard.heads)),
            up=self.up.part(heads, n_heads),
            uk=self.uk.part(heads, n_heads),
            head_shard=shard,
        )

    def __repr__(self) -> str:
        return short_repr(
            self, dims_text(self.dims), f"quant={self.quant!r}", f"for {ISA.name}", size_text(self.nbytes)
        )

    def arguments_for(self, numerics: Numerics) -> Layer:
        """As the kernels take them: views, whose shapes stay as they are now.

        Args:
            numerics: "pypto" or "cann", see `MlaProlog`.

        Returns:
            An argument of the kernels.
        """
        gamma_cq, gamma_ckv, smooth = (writable_alias(getattr(self, name).view()) for name in _VECTORS)
        return Layer(
            down=self.down.as_argument(),
            up=self.up.as_argument(),
            uk=self.uk.as_argument(),
            query_norm=Norm(gamma_cq, self.epsilon_cq, smooth),
            key_norm=Norm(gamma_ckv, self.epsilon_ckv, smooth[:0]),
            qk_nope_head_dim=self.dims.qk_nope_head_dim,
            cann=numerics == "cann",
        )

    def check(self, source: str = "weights") -> None:
        """Raises unless every array has the type and size that dims and quant give, on which the kernels rely.

        Args:
            source: What begins the message.

        Raises:
            TypeError: A field is of another type.
            ValueError: A field has another value, dtype or size.
        """
        try:
            check_mode(self.dims, self.quant)
            for name in ("epsilon_cq", "epsilon_ckv"):
                if type(getattr(self, name)) is not np.float32:
                    raise TypeError(f"{name}: expected np.float32, got {type(getattr(self, name)).__name__}")
                check_epsilon(name, getattr(self, name))
            check_shard(self.head_shard, self.dims)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{source}.{error}") from None
        fits = {}
        for name, size in gemm_sizes(self.dims, self.quant).items():
            gemm: PackedGemm = getattr(self, name)
            expect_type(f"{source}.{name}", gemm, PackedGemm)
            fits[name] = size.fits(gemm)
        q_rank = self.dims.q_lora_rank
        fits["gamma_cq"] = is_vector(self.gamma_cq, "float32", q_rank)
        fits["gamma_ckv"] = is_vector(self.gamma_ckv, "float32", self.dims.kv_lora_rank)
        fits["smooth_scales_cq"] = is_vector(self.smooth_scales_cq, "float32", 0, *[q_rank] * ("b" in self.quant))
        for name, fit in fits.items():
            if not fit:
                raise ValueError(
                    f"{source}: expected {name} of the size and type that dims and quant give, got another"
                )

    @property
    def nbytes(self) -> int:
        """Bytes of the three packed products."""
        return self.down.nbytes + self.up.nbytes + self.uk.nbytes

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a file that `load` maps; an older file of that name is replaced once the new one is complete.

        Args:
            path: The file. For a symbolic link, its target is replaced.

        Raises:
            OSError: The folder or the older file cannot be written.
            ValueError: `path` is not a regular file but a device or a FIFO.
        """
        gemms = {name: getattr(self, name) for name in PRODUCTS}
        arrays = {f"{name}.{part}": getattr(gemm, part) for name, gemm in gemms.items() for part in _PARTS}
        arrays |= {name: getattr(self, name) for name in _VECTORS}
        arrays = {name: array for name, array in arrays.items() if array.size}
        facts = {
            "isa": ISA.name,
            "packing": panel_packing(),
            "dims": asdict(self.dims),
            "quant": self.quant,
            "gemms": {name: {fact: getattr(gemm, fact) for fact in FACTS} for name, gemm in gemms.items()},
            "epsilon_cq": float(self.epsilon_cq),
            "epsilon_ckv": float(self.epsilon_ckv),
        }
        if self.head_shard is not None:
            facts["head_shard"] = asdict(self.head_shard)
        write_arrays(path, facts, arrays)

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle, whose result is refused, as `load` refuses a file, where panels are read otherwise."""
        return _unpickled, (
            panel_packing(),
            ISA.name,
            {field.name: getattr(self, field.name) for field in fields(self)},
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, verify: bool = False) -> Self:
        """Maps a file that `save` wrote: pages are read when a call first needs them, and shared between processes.

        The checksum of the header and the size of the file are always checked. So no file makes a kernel read outside
        of it, but whether its weights are right is not checked. Do not change a file in place while it is in use;
        replacing it is fine.

        Args:
            path: The file.
            verify: Also compare the checksums of the weights, which reads all of them.

        Returns:
            Weights whose arrays are the file.

        Raises:
            OSError: The file cannot be read.
            ValueError: The file, which the message names, is of another kind or format version, truncated, corrupted,
                packed for the panels of another instruction set, or has a wrong field in its header.
        """
        found, arrays = read_arrays(path, verify)
        facts = read_facts(str(path), found)
        check_packing(path, facts.packing, facts.isa)
        known = {*_VECTORS, *(f"{name}.{part}" for name in PRODUCTS for part in _PARTS)}
        for name, array in arrays.items():
            if name not in known or not array.size:
                raise ValueError(f"{path}: expected arrays of packed weights, got {name[:40]} of shape {array.shape}")
        nothing = PackedGemm.nothing()

        def product(name: str) -> PackedGemm:
            panels, offset, col_scale = (arrays.get(f"{name}.{part}", getattr(nothing, part)) for part in _PARTS)
            return PackedGemm(panels, offset, col_scale, **facts.gemms[name])

        gamma_cq, gamma_ckv, smooth = (arrays.get(name, nothing.col_scale) for name in _VECTORS)
        weights = cls(
            dims=facts.dims,
            quant=facts.quant,
            down=product("down"),
            up=product("up"),
            uk=product("uk"),
            gamma_cq=gamma_cq,
            gamma_ckv=gamma_ckv,
            smooth_scales_cq=smooth,
            epsilon_cq=facts.epsilon_cq,
            epsilon_ckv=facts.epsilon_ckv,
            head_shard=facts.head_shard,
        )
        weights.check(str(path))
        return weights


def _unpickled(packing: dict[str, int | str], isa: str, values: dict[str, Any]) -> PackedWeights:
    check_packing("PackedWeights", packing, isa)
    for name in PRODUCTS:
        gemm: PackedGemm = values[name]
        panels = aligned_empty(gemm.panels.shape, gemm.panels.dtype)
        panels[...] = gemm.panels
        values[name] = replace(gemm, panels=panels)
    return PackedWeights(**values)


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
    kr, places = ISA.kr_int8 if quantised else ISA.kr_bf16, ISA.places(quantised)
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
        pack_panels(n_threads, n_threads, share, source, Order(kr, n_parts, places), here)
        scale = scales[i]
        if scale is not None:
            by_panel = col_scale[at * ISA.nr : (at + count) * ISA.nr].reshape(cut.batch, -1)
            there = np.flatnonzero(columns >= 0)
            by_panel[:, there] = scale.reshape(cut.batch, cut.n)[:, columns[there]]
        at += count
    if quantised and ISA.a_offset:
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
    return packing | {"a_offset": ISA.a_offset, "odd_k_first": int(ISA.bf16_dot)}


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
