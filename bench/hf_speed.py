"""Time a model of transformers against itself with prologs in its attention, and the memory that a call takes.

`python bench/hf_speed.py` makes one random layer with DeepSeek-V3's attention (hidden 7168, 128 heads), or V3.2's, and
a small MLP, loads it twice and patches one. Rounds alternate between the two; their logits are compared first. A step
after many tokens begins with a cache of random rows, the same ones for both. Peaks are what a call needs beyond what
was resident before it. Where the unpatched model would need more memory than there is, by its peaks of shorter calls,
it is left out, and the line says what it would need.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from shared.random_deepseek import save_random_model
from transformers import AutoModelForCausalLM, DeepseekV3Config, DeepseekV32Config, DynamicCache
from transformers.utils import logging

from mla_numba import sylvester_hadamard
from mla_numba.base.modes import QUANT_MODES
from mla_numba.interop.hf.patched import Patched, patch

MOST_ERROR = {"v3": 0.1, "v32": 0.3}  # of logits relative to their deviation; V3.2's indexers choose other keys, too
SURELY_FITS = 1024  # tokens: of so few nobody asks how much memory they need
_STATUS, _CLEAR, _MEMORY = Path("/proc/self/status"), Path("/proc/self/clear_refs"), Path("/proc/meminfo")


def forward(model: Any, tokens: torch.Tensor, cache: Any = None) -> Any:
    """The model's output; with a `cache`, which is then as before."""
    with torch.no_grad():
        out = model(tokens, cache=cache, use_cache=True)
    if cache is not None:
        cache.crop(-tokens.shape[1])
    return out


def seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def peak_mb(call: Callable[[], Any]) -> float | None:
    """Megabytes that a call needs at most beyond what is resident before; None where Linux does not say."""
    try:
        _CLEAR.write_text("5")  # the peak becomes what is resident now
        before = _resident("VmRSS")
    except OSError:
        return None
    call()
    return (_resident("VmHWM") - before) / 1e3


def _resident(name: str) -> int:
    return _kilobytes(_STATUS, name)


def _kilobytes(path: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(name))


def available_mb() -> float | None:
    """Megabytes that this machine could still give; None where Linux does not say."""
    try:
        return _kilobytes(_MEMORY, "MemAvailable") / 1e3
    except OSError:
        return None


def expected_peak_mb(call_of: Callable[[int], Callable[[], Any]], n: int) -> float | None:
    """What `call_of(n)` would need at its peak, from the peaks of an eighth and a quarter of its n tokens.

    Scores grow with the square of the tokens and all else with the tokens, so a peak is taken for a * n^2 + b * n.
    """
    eighth, quarter = (peak_mb(call_of(n // part)) for part in (8, 4))
    if eighth is None or quarter is None:
        return None
    square = max(quarter / 2 - eighth, 0.0)
    return 64 * square + 8 * (eighth - square)


def too_large(call_of: Callable[[int], Callable[[], Any]], n: int) -> str | None:
    """Why an unpatched call of n tokens is left out, or None if it fits into the memory."""
    if n <= SURELY_FITS:
        return None
    needed, available = expected_peak_mb(call_of, n), available_mb()
    if needed is None or available is None or needed <= 0.9 * available:
        return None
    return f"would need {needed / 1e3:.1f} GB, of which {available / 1e3:.1f} are available"


def report(name: str, calls: list[Callable[[], Any]], rounds: int, left_out: str | None = None) -> str:
    """Medians of both in milliseconds, the median of the rounds' ratios (above 1 the patched one is faster), peaks.

    `calls`: the unpatched and the patched one, or the patched one alone with what to say of the other.
    """
    peaks = [peak_mb(call) for call in calls]
    rows = [[seconds(call) for call in calls] for _ in range(rounds)]
    times = [1e3 * statistics.median(column) for column in zip(*rows, strict=True)]
    memory = ["?" if peak is None else f"{peak:.0f}" for peak in peaks]
    if left_out is not None:
        return f"{name}: unpatched {left_out}, patched {times[0]:.1f} ms, peak {memory[0]} MB"
    ratio = statistics.median(a / b for a, b in rows)
    both = f"unpatched {times[0]:.1f} ms, patched {times[1]:.1f} ms"
    return f"{name}: {both}, peaks {memory[0]} and {memory[1]} MB, ratio {ratio:.2f}"


def compare(model: str, calls: list[Callable[[], Any]]) -> None:
    """Raises unless both give about the same logits."""
    plain, patched = (call().logits.float() for call in calls)
    error, most = float((plain - patched).square().mean().sqrt() / plain.std()), MOST_ERROR[model]
    if not error <= most:
        raise click.ClickException(f"logits: expected a relative difference up to {most}, got {error:.3f}")


def filled_caches(config: Any, patched: Patched, n: int) -> list[Any]:
    """Caches of both models with the same n random rows."""
    rng = np.random.default_rng(n)
    ours, plain = patched.new_cache(), DynamicCache(config=config)
    pool, layer = ours.pool, ours.layers[0]
    pool.reserve(1, 0, n + 1)
    slots = pool.slots(0, n)[0]
    cache, keys = pool.cache(0), pool.index_cache(0) if pool.indexers else None
    for array in (*cache.arrays().values(), *(keys.arrays().values() if keys else ())):
        flat = array.reshape(-1, array.shape[-1])
        if array.dtype == np.int8:
            flat[slots] = rng.integers(-127, 128, (n, flat.shape[1]), np.int8)
        elif array.shape[-1] <= 4:  # scales, of values of about 1
            flat[slots] = 1 / 64
        else:
            flat[slots] = rng.standard_normal((n, flat.shape[1]), np.float32).astype(array.dtype)
    layer.length = n
    rows = cache.gather(slots)
    latents, rope = (torch.from_numpy(np.asarray(a, np.float32)).bfloat16()[None, None] for a in rows)
    plain.update(latents, rope, 0)
    if isinstance(config, DeepseekV32Config):
        index = rng.standard_normal((n, config.index_head_dim), np.float32)
        if keys is not None:  # which are rotated; the matrix is its own inverse
            index = keys.gather(slots) @ sylvester_hadamard(config.index_head_dim).astype(np.float32)
        tensor = torch.from_numpy(index).bfloat16()[None]
        plain.update_indexer(tensor, 0)
        if layer.indexer is not None:
            layer.indexer.update_indexer(tensor)
    return [plain, ours]


def time_prompt(kind: str, models: list[Any], n: int, rounds: int) -> str:
    """The line of a prompt of n tokens."""
    tokens = torch.randint(1, 256, (1, n), generator=torch.Generator().manual_seed(n))
    calls = [lambda m=model: forward(m, tokens) for model in models]
    left_out = too_large(lambda part: lambda: forward(models[0], tokens[:, :part]), n)
    if left_out is None:
        compare(kind, calls)
    return report(f"{n} tokens", calls if left_out is None else calls[1:], rounds, left_out)


def time_step(kind: str, models: list[Any], patched: Patched, n: int, rounds: int) -> str:
    """The line of one token after n of them."""
    step = torch.ones(1, 1, dtype=torch.long)

    def calls_after(n: int) -> list[Callable[[], Any]]:
        caches = filled_caches(models[0].config, patched, n)
        return [lambda m=m, c=c: forward(m, step, c) for m, c in zip(models, caches, strict=True)]

    left_out = too_large(lambda part: calls_after(part)[0], n)
    calls = calls_after(n)
    if left_out is None:
        compare(kind, calls)
    return report(f"1 more after {n}", calls if left_out is None else calls[1:], rounds, left_out)


@click.command(help=__doc__)
@click.option("--model", "kind", default="v3", type=click.Choice(["v3", "v32"]), show_default=True)
@click.option("--tokens", "prompts", multiple=True, default=(128, 1024), type=click.IntRange(1), show_default=True)
@click.option("--after", multiple=True, default=(1024, 8192), type=click.IntRange(1), show_default=True)
@click.option("--quant", default="b", type=click.Choice(QUANT_MODES), show_default=True)
@click.option("--rounds", default=7, type=click.IntRange(1), show_default=True)
@click.option("--hidden", default=7168, type=click.IntRange(2), show_default=True)
@click.option("--heads", default=128, type=click.IntRange(1), show_default=True)
def main(
    kind: str, prompts: tuple[int, ...], after: tuple[int, ...], quant: str, rounds: int, hidden: int, heads: int
) -> None:
    logging.disable_progress_bar()
    config = (DeepseekV32Config if kind == "v32" else DeepseekV3Config)(
        hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=heads, num_hidden_layers=1,
        first_k_dense_replace=1, intermediate_size=256, vocab_size=256, eos_token_id=None, pad_token_id=0,
        max_position_embeddings=1 << 17,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        save_random_model(folder, config, 0, habit=0.0)
        models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16) for _ in range(2)]
    patched = patch(models[1], quant=quant)
    for n in prompts:
        print(time_prompt(kind, models, n, rounds), flush=True)
    for n in after:
        print(time_step(kind, models, patched, n, rounds), flush=True)


if __name__ == "__main__":
    main()
