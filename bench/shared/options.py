"""Options that several scripts have."""

from __future__ import annotations

import click

__all__ = ["DIMS", "ManyValues"]

DIMS = "hidden_size num_attention_heads q_lora_rank kv_lora_rank qk_nope_head_dim qk_rope_head_dim"
MANY = ("--tokens", "--peers")


class ManyValues(click.Command):
    """Reads `--tokens 1 8` as `--tokens 1 --tokens 8`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        for before, arg in zip(["", *args], args, strict=False):
            if not arg.startswith("-") and before and not before.startswith("-"):
                name = next((a for a in reversed(spread) if a.startswith("-")), "")
                spread += [name] if name in MANY else []
            spread.append(arg)
        return super().parse_args(ctx, spread)
