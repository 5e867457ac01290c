"""Measure how far a model of transformers is from itself with prologs in its attention, mode by mode.

`python bench/hf_agreement.py` makes a random DeepSeek-V3 with the published model's attention but for the number of
heads, saves it, and reads its projections back through `Checkpoint`. The truth is the same model in float32. The cache
rows that a patched model wrote are compared with the reference first, bit for bit. With `--full-width` it is one layer
of DeepSeek-V3.2 at its own width (hidden 7168, 128 heads, 64 heads of the indexer), which takes 3 GB.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Column, Table
from shared.random_deepseek import save_random_model
from transformers import AutoModelForCausalLM, DeepseekV3Config, DeepseekV32Config
from transformers.utils import logging

from mla_numba import Checkpoint, PagedCache
from mla_numba.base.modes import QUANT_MODES
from mla_numba.interop.hf.patched import Patched, patch
from mla_numba.interop.torch.tensors import to_numpy
from mla_numba.oracle.bits import compare_bits, reference_run

SIZES: dict[str, Any] = {
    "vocab_size": 1024, "hidden_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 8,
    "num_key_value_heads": 8, "q_lora_rank": 384, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "v_head_dim": 128, "first_k_dense_replace": 3, "intermediate_size": 2048, "moe_intermediate_size": 256,
    "n_routed_experts": 16, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 4, "eos_token_id": None,
    "bos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
# One layer of DeepSeek-V3.2, whose configuration has the rest by default. A query selects 64 keys, not 2048.
FULL_WIDTH: dict[str, Any] = {
    "vocab_size": 1024, "num_hidden_layers": 1, "first_k_dense_replace": 1, "intermediate_size": 2048,
    "index_topk": 64, "eos_token_id": None, "bos_token_id": None, "pad_token_id": 0,
}  # fmt: skip


@dataclass(frozen=True)
class LogitAgreement:
    """A model against the truth and against the unpatched bf16 model, on the same tokens.

    `median` and `ninth`: of a token's logits the root mean square of the error, relative to the logits' deviation, for
    the median token and the ninth decile. `from_unpatched`: the median of the difference from the unpatched model's
    logits, likewise. `as_truth`, `as_unpatched`: the share of tokens after which it would choose
    the same next one as that model. `same_run`: of the tokens that it generates from a prompt, how many are the
    unpatched model's before the first that is not.
    """

    name: str
    median: float
    ninth: float
    from_unpatched: float
    as_truth: float
    as_unpatched: float
    same_run: float


def check_rows(patched: Patched, checkpoint: Checkpoint, tokens: torch.Tensor, numerics: str) -> None:
    """Raises where a row that the model writes for these tokens (1, T) is not the reference's."""
    found: list[dict[str, Any]] = []
    attentions = [layer.self_attn for layer in patched.model.model.layers]
    hooks = [
        a.register_forward_pre_hook(lambda m, args, kwargs: found.append(kwargs), with_kwargs=True) for a in attentions
    ]
    cache = patched.new_cache()
    with torch.no_grad():
        patched.model(tokens, cache=cache)
    for hook in hooks:
        hook.remove()
    t = tokens.shape[1]
    for index, (attention, given) in enumerate(zip(attentions, found, strict=True)):
        weights = replace(
            checkpoint.load_layer(index, patched.quant).weights,
            epsilon_cq=attention.q_a_layernorm.variance_epsilon,
            epsilon_ckv=attention.kv_a_layernorm.variance_epsilon,
        )
        x, cos, sin = (to_numpy(a[0].contiguous()) for a in (given["hidden_states"], *given["position_embeddings"]))
        before = PagedCache.allocate(weights.dims, 1, t, quantized="b" in patched.quant)
        want = reference_run(weights, x, cos, sin, np.arange(t), before, numerics=numerics)
        slots = cache.pool.slots(0, t)[0]
        for name, array in cache.pool.cache(index).arrays().items():
            rows = array.reshape(-1, array.shape[-1])[slots]
            mismatch = compare_bits(f"layer {index}, {name}", rows, getattr(want, name).reshape(rows.shape))
            if mismatch is not None:
                raise click.ClickException(str(mismatch))


def logits_of(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens).logits.float()


def run_of(model: Any, prompts: torch.Tensor, n_new: int) -> torch.Tensor:
    """Greedy tokens (B, n_new)."""
    out = model.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=n_new, do_sample=False)
    return out[:, prompts.shape[1] :]


def agreement(
    name: str,
    logits: torch.Tensor,
    plain: torch.Tensor,
    truth: torch.Tensor,
    run: torch.Tensor,
    plain_run: torch.Tensor,
) -> LogitAgreement:
    errors, changes = ((logits - other).square().mean(-1).sqrt() / truth.std() for other in (truth, plain))
    same_run = (run == plain_run).long().cumprod(1).sum(1).float().mean()
    as_truth, as_unpatched = ((logits.argmax(-1) == other.argmax(-1)).float().mean() for other in (truth, plain))
    return LogitAgreement(
        name, float(errors.median()), float(errors.quantile(0.9)), float(changes.median()), float(as_truth),
        float(as_unpatched), float(same_run),
    )  # fmt: skip


def measure(
    folder: Path, config: Any, batch: int, t: int, n_new: int, n_checked: int, numerics: str, habit: float
) -> list[LogitAgreement]:
    """The unpatched model, and the patched one in every mode: `batch` prompts of `t` tokens, `n_new` generated."""
    save_random_model(folder, config, 0, habit)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, config.vocab_size, (batch, t), generator=generator)
    truth = logits_of(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), tokens)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    plain, plain_run = logits_of(model, tokens), run_of(model, tokens, n_new)
    rows = [agreement("unpatched", plain, plain, truth, plain_run, plain_run)]
    checkpoint = Checkpoint(folder)
    for quant in QUANT_MODES:
        with patch(model, quant=quant, checkpoint=checkpoint, numerics=numerics) as patched:
            check_rows(patched, checkpoint, tokens[:1, :n_checked], numerics)
            logits, run = logits_of(model, tokens), run_of(model, tokens, n_new)
        rows.append(agreement(quant, logits, plain, truth, run, plain_run))
    if not torch.equal(logits_of(model, tokens), plain):
        raise click.ClickException("unpatch: expected the model's own bits again, got others")
    return rows


def table(rows: list[LogitAgreement], title: str) -> Table:
    headers = ["median", "ninth decile", "from unpatched", "as float32", "as unpatched", "same run"]
    shown = Table("mode", *(Column(h, justify="right") for h in headers), title=title, box=box.MARKDOWN)
    for row in rows:
        shown.add_row(
            row.name, f"{row.median:.4f}", f"{row.ninth:.4f}", f"{row.from_unpatched:.4f}",
            f"{100 * row.as_truth:.1f} %", f"{100 * row.as_unpatched:.1f} %", f"{row.same_run:.1f}",
        )  # fmt: skip
    return shown


@click.command(help=__doc__)
@click.option("--prompts", "batch", default=16, type=click.IntRange(1), show_default=True)
@click.option("--tokens", "t", default=128, type=click.IntRange(1), show_default=True, help="Tokens a prompt.")
@click.option("--new", "n_new", default=64, type=click.IntRange(1), show_default=True, help="Tokens to generate.")
@click.option("--checked", default=4, type=click.IntRange(1), show_default=True, help="Tokens to compare exactly.")
@click.option("--numerics", default="pypto", type=click.Choice(["pypto", "cann"]), show_default=True)
@click.option("--habit", default=0.0, type=float, show_default=True, help="0: random logits, near ties; 1: clear ones.")
@click.option("--full-width", is_flag=True, help="One layer of DeepSeek-V3.2, instead of a narrow DeepSeek-V3.")
def main(batch: int, t: int, n_new: int, checked: int, numerics: str, habit: float, full_width: bool) -> None:
    logging.disable_progress_bar()
    config = DeepseekV32Config(**FULL_WIDTH) if full_width else DeepseekV3Config(**SIZES)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), config, batch, t, n_new, min(checked, t), numerics, habit)
    Console(width=120).print(table(rows, f"{batch} prompts of {t} tokens, {n_new} generated, numerics {numerics}"))


if __name__ == "__main__":
    main()
