"""Time a model of transformers against itself with prologs in its attention.

`python bench/hf_speed.py` makes one random layer with DeepSeek-V3's attention (hidden 7168, 128 heads) and a small MLP,
loads it twice and patches one. Rounds alternate between the two; their logits are compared first.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import click
import torch
from shared.random_deepseek import save_random_model
from transformers import AutoModelForCausalLM, DeepseekV3Config
from transformers.utils import logging

from mla_numba.base.modes import QUANT_MODES
from mla_numba.interop.hf.patched import patch

MOST_ERROR = 0.1  # of logits relative to their deviation: int8 and bf16 noise of one layer is far below


def prefill(model: Any, tokens: torch.Tensor) -> tuple[float, Any]:
    """Seconds of a prompt, and the model's output."""
    with torch.no_grad():
        begin = time.perf_counter()
        out = model(tokens, use_cache=True)
        return time.perf_counter() - begin, out


def decode(model: Any, cache: Any, token: torch.Tensor) -> float:
    """Seconds of one more token; the cache is then as before."""
    with torch.no_grad():
        begin = time.perf_counter()
        model(token, cache=cache)
        seconds = time.perf_counter() - begin
    cache.crop(-1)
    return seconds


def report(name: str, measure: Callable[[Any], float], models: list[Any], rounds: int) -> str:
    """Medians of both in milliseconds, and the median of the rounds' ratios: above 1 the patched one is faster."""
    pairs = [[measure(model) for model in models] for _ in range(rounds)]
    plain, patched = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    return f"{name}: unpatched {plain:.1f} ms, patched {patched:.1f} ms, ratio {ratio:.2f}"


@click.command(help=__doc__)
@click.option("--tokens", "lengths", multiple=True, default=(128, 1024), type=click.IntRange(1), show_default=True)
@click.option("--quant", default="b", type=click.Choice(QUANT_MODES), show_default=True)
@click.option("--rounds", default=7, type=click.IntRange(1), show_default=True)
@click.option("--hidden", default=7168, type=click.IntRange(2), show_default=True)
@click.option("--heads", default=128, type=click.IntRange(1), show_default=True)
def main(lengths: tuple[int, ...], quant: str, rounds: int, hidden: int, heads: int) -> None:
    logging.disable_progress_bar()
    config = DeepseekV3Config(
        hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=heads, num_hidden_layers=1,
        first_k_dense_replace=1, intermediate_size=256, vocab_size=256, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        save_random_model(folder, config, 0, habit=0.0)
        models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16) for _ in range(2)]
    patch(models[1], quant=quant)
    for n in lengths:
        tokens = torch.randint(1, 256, (1, n), generator=torch.Generator().manual_seed(n))
        outs = [prefill(model, tokens)[1] for model in models]
        plain, patched = (out.logits.float() for out in outs)
        error = float((plain - patched).square().mean().sqrt() / plain.std())
        if not error <= MOST_ERROR:
            raise click.ClickException(f"logits: expected a relative difference up to {MOST_ERROR}, got {error:.3f}")
        caches = dict(zip(models, (out.cache for out in outs), strict=True))
        print(report(f"{n} tokens", lambda model, tokens=tokens: prefill(model, tokens)[0], models, rounds))
        step = tokens[:, :1]
        print(report(f"1 more after {n}", lambda m, c=caches, t=step: decode(m, c[m], t), models, rounds))


if __name__ == "__main__":
    main()
