"""The option `--dims`: the dimensions of a layer, given as numbers or by the configuration of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import click

from ..base.dims import MlaDims
from ..base.indexer_dims import IndexerDims
from ..base.modes import RopeStyle

__all__ = ["DIMS_HELP", "IndexerShape", "Model", "dims_option", "model_option", "parse_dims", "parse_model"]

_METAVAR = "H,N,Rq,C,D,R|PATH"
DIMS_HELP = f"{', '.join(field.name for field in fields(MlaDims))}; or a model's config.json, or its folder."


class IndexerShape(NamedTuple):
    """Heads of an indexer, their width, and how their rope columns come."""

    n_heads: int
    head_dim: int
    rope: RopeStyle = "half"


class Model(NamedTuple):
    """Dimensions, and the configuration that they were read from; None where they were given as numbers."""

    dims: MlaDims
    config: Mapping[str, Any] | None

    def indexer(self) -> IndexerShape | None:
        """The indexer of the configuration; None where there is no configuration.

        Raises `TypeError` or `ValueError` where the configuration has no indexer, or none that is computed here.
        """
        if self.config is None:
            return None
        from ..base.model_config import read_model_config  # which needs NumPy

        found = IndexerDims.from_hf(self.config)
        return IndexerShape(found.n_heads, found.head_dim, read_model_config(self.config).index_rope)

    def index_topk(self, most: int) -> int | None:
        """How many keys a token attends to, as the configuration says.

        None where it does not say, or there is no configuration. Raises `ValueError` where it is no int from 1 to
        `most`.
        """
        if self.config is None:
            return None
        from ..base.model_config import read_model_config, shown

        model = read_model_config(self.config)
        k = model.get("index_topk")
        if k is not None and not (type(k) is int and 1 <= k <= most):
            raise ValueError(f"{model.name}.index_topk: expected an int in 1..{most}, got {shown(k)}")
        return k

    def softmax_scale(self) -> float:
        """What attention multiplies its scores by; (D + R)^-1/2 where there is no configuration.

        Raises `TypeError` or `ValueError` for a configuration from which it cannot be read.
        """
        if self.config is None:
            return float((self.dims.qk_nope_head_dim + self.dims.qk_rope_head_dim) ** -0.5)
        from ..rope_table import softmax_scale

        return softmax_scale(self.config)


def parse_model(text: str) -> Model:
    """Dimensions given as six integers with commas, or by a model's `config.json` or the folder that it is in."""
    numbers, path = text.split(","), Path(text)
    try:
        if len(numbers) == 6 and all(n.strip().removeprefix("-").isdecimal() for n in numbers):
            return Model(MlaDims(*map(int, numbers)), None)
        if path.is_dir():
            path /= "config.json"
        elif not path.is_file():
            raise click.BadParameter(
                f"expected six integers with commas or the path of a config.json or its folder, got {text!r}"
            )
        from ..base.model_config import read_config_file  # which needs NumPy

        config = read_config_file(path)
        return Model(MlaDims.from_hf(config), config)
    except (OSError, TypeError, ValueError) as error:
        raise click.BadParameter(f"{text!r}: {error}") from None


def parse_dims(text: str) -> MlaDims:
    """The same where nothing but the dimensions is of use."""
    return parse_model(text).dims


def dims_option(help_text: str) -> Callable[[Any], Any]:
    """`--dims` as `MlaDims`, whose default a command says in its help."""
    return click.option("--dims", type=parse_dims, metavar=_METAVAR, help=help_text)


def model_option(help_text: str) -> Callable[[Any], Any]:
    """`--dims` as a `Model`, under the name `model`."""
    return click.option("--dims", "model", type=parse_model, metavar=_METAVAR, help=help_text)
