"""An indexer's weights as the kernels read them: packed once, in their own types."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np

from tiling import ceil_div, round_up

from ..base.checks import Array, check_choice, check_epsilon, check_k_int8, expect_type
from ..base.indexer_dims import IndexerDims
from ..base.memory import writable_alias
from ..base.modes import ROPE_STYLES, RopeStyle
from ..base.short_repr import indexer_dims_text, short_repr, size_text
from ..kernels import ISA
from ..kernels.indexer.arguments import IndexLayer
from ..kernels.row.layernorm import LayerNorm
from .packed_facts import GemmSize, is_vector, read_indexer_facts
from .packed_file import PackedParts, read_packed, write_packed
from .packed_gemm import PackedGemm, check_packing, panel_packing

__all__ = ["PackedIndexer"]

_PRODUCTS = ("down", "up", "hadamard_q", "hadamard_k")
_VECTORS = ("ln_gamma_k", "ln_beta_k")


@dataclass(frozen=True, slots=True, eq=False)
class PackedIndexer:
    """`IndexerWeights` in the order of the kernels: what `IndexerWeights.pack`, `load` and `mla-numba pack` make.

    | field                  | is                                                                    |
    |------------------------|-----------------------------------------------------------------------|
    | dims, rope             | as of `IndexerWeights`                                                |
    | down                   | wk and w_proj side by side                                            |
    | up                     | w_qb by heads, of each the rotated columns first, as two halves       |
    | hadamard_q, hadamard_k | the two matrices                                                      |
    | ln_gamma_k, ln_beta_k  | (Di,) float32                                                         |
    | epsilon                | float32, of the keys' LayerNorm                                       |

    Examples:
        >>> import mla_numba as mla
        >>> weights = mla.IndexerWeights.random(mla.MlaDims(256, 4, 96, 64, 32, 32), n_heads=8, head_dim=64)
        >>> weights.pack().save("indexer.mla")
        >>> packed = mla.PackedIndexer.load("indexer.mla", verify=True)  # mapped, and shared between processes
        >>> packed.dims == weights.dims, mla.IndexerProlog(packed).weights is packed
        (True, True)
    """

    dims: IndexerDims
    rope: RopeStyle
    down: PackedGemm
    up: PackedGemm
    hadamard_q: PackedGemm
    hadamard_k: PackedGemm
    ln_gamma_k: Array
    ln_beta_k: Array
    epsilon: np.float32

    def __repr__(self) -> str:
        rope = f"rope={self.rope!r}" if self.rope != "half" else ""
        return short_repr(self, indexer_dims_text(self.dims), rope, f"for {ISA.name}", size_text(self.nbytes))

    @property
    def nbytes(self) -> int:
        """Bytes of the packed products."""
        return sum(getattr(self, name).nbytes for name in _PRODUCTS)

    def as_argument(self) -> IndexLayer:
        """As the kernels take it: views, whose shapes stay as they are now."""
        down, up, hadamard_q, hadamard_k = (getattr(self, name).as_argument() for name in _PRODUCTS)
        gamma, beta = (writable_alias(vector.view()) for vector in (self.ln_gamma_k, self.ln_beta_k))
        return IndexLayer(
            down=down,
            up=up,
            hadamard_q=hadamard_q,
            hadamard_k=hadamard_k,
            key_norm=LayerNorm(gamma, beta, self.epsilon),
            weight_factor=np.float32(1.0 / (np.sqrt(self.dims.n_heads) * np.sqrt(self.dims.head_dim))),
            interleaved=self.rope == "interleaved",
        )

    def check(self, source: str = "weights") -> None:
        """Raises unless every array has the type and size that dims give, on which the kernels rely.

        Args:
            source: What begins the message.

        Raises:
            TypeError: A field is of another type.
            ValueError: A field has another value, dtype or size.
        """
        expect_type(f"{source}.dims", self.dims, IndexerDims)
        check_choice(f"{source}.rope", self.rope, ROPE_STYLES)
        check_k_int8(f"{source}.dims.q_lora_rank", self.dims.q_lora_rank)
        expect_type(f"{source}.epsilon", self.epsilon, np.float32)
        check_epsilon(f"{source}.epsilon", self.epsilon)
        fits = {name: is_vector(getattr(self, name), "float32", self.dims.head_dim) for name in _VECTORS}
        for name, size in _sizes(self.dims).items():
            expect_type(f"{source}.{name}", getattr(self, name), PackedGemm)
            fits[name] = size.fits(getattr(self, name))
        for name, fit in fits.items():
            if not fit:
                raise ValueError(f"{source}: expected {name} of the size and type that dims give, got another")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a file that `load` maps; an older file of that name is replaced once the new one is complete.

        Args:
            path: The file. For a symbolic link, its target is replaced.

        Raises:
            OSError: The folder or the older file cannot be written.
            ValueError: `path` is not a regular file but a device or a FIFO.
        """
        facts = {"dims": asdict(self.dims), "rope": self.rope, "epsilon": float(self.epsilon)}
        gemms, vectors = ({name: getattr(self, name) for name in names} for names in (_PRODUCTS, _VECTORS))
        write_packed(path, "indexer", PackedParts(gemms, vectors, facts))

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, verify: bool = False) -> Self:
        """Maps a file that `save` wrote: pages are read when a call first needs them, and shared between processes.

        What is checked, and what is not, is said at `PackedWeights.load`.

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
        found = read_packed(path, "indexer", _PRODUCTS, _VECTORS, verify)
        values: dict[str, Any] = {
            **found.gemms,
            **found.vectors,
            **read_indexer_facts(str(path), found.facts)._asdict(),
        }
        weights = cls(**values)
        weights.check(str(path))
        return weights

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle, whose result is refused where panels are read otherwise."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return _unpickled, (panel_packing(), ISA.name, values)


def _unpickled(found: dict[str, int | str], isa: str, values: dict[str, Any]) -> PackedIndexer:
    check_packing("PackedIndexer", found, isa)
    values |= {name: values[name].realigned() for name in _PRODUCTS}
    return PackedIndexer(**values)


def _sizes(dims: IndexerDims) -> dict[str, GemmSize]:
    """The size of each product by its name."""

    def columns(n: int) -> int:
        return ceil_div(n, ISA.nr) * ISA.nr

    kp_x, kp_q, kp_head = (
        round_up(k, kr)
        for k, kr in (
            (dims.hidden_size, ISA.kr_bf16),
            (dims.q_lora_rank, ISA.kr_int8),
            (dims.head_dim, ISA.kr_bf16),
        )
    )
    hadamard = GemmSize(kp_head, 1, columns(dims.head_dim), False)
    return {
        "down": GemmSize(kp_x, 1, columns(dims.head_dim) + columns(dims.n_heads), False),
        "up": GemmSize(kp_q, 1, dims.n_heads * columns(dims.head_dim), True),
        "hadamard_q": hadamard,
        "hadamard_k": hadamard,
    }
