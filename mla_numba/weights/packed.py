"""Weights as the kernels read them: packed once, in their own types."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

import numpy as np

from ..base.checks import Array, check_epsilon, expect_type
from ..base.dims import MlaDims
from ..base.head_shard import HeadShard
from ..base.memory import writable_alias
from ..base.modes import Numerics, QuantMode
from ..base.short_repr import dims_text, short_repr, size_text
from ..kernels import ISA
from ..kernels.sweeps.arguments import Layer, Norm
from .packed_facts import PRODUCTS, check_mode, check_shard, gemm_sizes, is_vector, read_facts
from .packed_file import PackedParts, read_packed, write_packed
from .packed_gemm import PackedGemm, check_packing, panel_packing

__all__ = ["PackedGemm", "PackedWeights"]

_VECTORS = ("gamma_cq", "gamma_ckv", "smooth_scales_cq")


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
        facts = {
            "dims": asdict(self.dims),
            "quant": self.quant,
            "epsilon_cq": float(self.epsilon_cq),
            "epsilon_ckv": float(self.epsilon_ckv),
        }
        if self.head_shard is not None:
            facts["head_shard"] = asdict(self.head_shard)
        gemms, vectors = ({name: getattr(self, name) for name in names} for names in (PRODUCTS, _VECTORS))
        write_packed(path, "prolog", PackedParts(gemms, vectors, facts))

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
        found = read_packed(path, "prolog", PRODUCTS, _VECTORS, verify)
        values: dict[str, Any] = {**found.gemms, **found.vectors, **read_facts(str(path), found.facts)._asdict()}
        weights = cls(**values)
        weights.check(str(path))
        return weights


def _unpickled(packing: dict[str, int | str], isa: str, values: dict[str, Any]) -> PackedWeights:
    check_packing("PackedWeights", packing, isa)
    values |= {name: values[name].realigned() for name in PRODUCTS}
    return PackedWeights(**values)
