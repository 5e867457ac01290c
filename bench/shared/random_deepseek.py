"""DeepSeek models of transformers with random weights, of any size."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import AutoModelForCausalLM


def save_random_model(folder: str | os.PathLike[str], config: Any, seed: int, habit: float, kind: Any = None) -> None:
    """Writes a bf16 model of this configuration whose products keep their input's size.

    `kind`: its class, where it is not the one that transformers finds by itself.
    Logits of weights that are purely random are often close to a tie. With a `habit` token t is mostly followed by
    t + 1, the more the larger it is.
    """
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config) if kind is None else kind(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif parameter.ndim > 1 and "embed" not in name:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
            else:
                parameter.normal_(0, 1)
        embedded = model.get_input_embeddings().weight
        model.lm_head.weight += habit * torch.nn.functional.normalize(embedded).roll(1, dims=0)
    model.to(torch.bfloat16).save_pretrained(folder)
