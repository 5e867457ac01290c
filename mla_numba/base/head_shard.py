"""The heads of one rank, where several share a layer."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .checks import check_int

__all__ = ["HeadShard"]


@dataclass(frozen=True, slots=True)
class HeadShard:
    """Rank `rank` of `size` that share the `num_attention_heads` of a layer.

    Ranks take runs of heads, in order; where `size` does not divide the heads, the first ranks take one more.

    Raises:
        TypeError: A field is no int.
        ValueError: The rank is none of 0..size-1, or there are more ranks than heads.

    Examples:
        >>> import mla_numba as mla
        >>> [mla.HeadShard(rank, 3, 128).heads for rank in range(3)]
        [range(0, 43), range(43, 86), range(86, 128)]
    """

    rank: int
    size: int
    num_attention_heads: int

    def __post_init__(self) -> None:
        n_heads = check_int("num_attention_heads", self.num_attention_heads, 1)
        size = check_int("size", self.size, 1)
        if size > n_heads:
            raise ValueError(f"size: expected at most {n_heads} ranks, one for each head, got {size}")
        check_int("rank", self.rank, 0, size - 1)

    @property
    def heads(self) -> range:
        """The rank's heads."""
        n, more = divmod(self.num_attention_heads, self.size)
        first = self.rank * n + min(self.rank, more)
        return range(first, first + n + (self.rank < more))

    def of_rank(self, rank: int) -> HeadShard:
        """The shard of another rank.

        Args:
            rank: The other rank.

        Returns:
            Its shard of the same layer.

        Raises:
            TypeError: `rank` is no int.
            ValueError: It is none of 0..size-1.
        """
        return replace(self, rank=rank)

    def __str__(self) -> str:
        """One line."""
        heads = self.heads
        return f"heads {heads[0]} to {heads[-1]} of {self.num_attention_heads}, rank {self.rank} of {self.size}"
