"""Small folders of dumped arguments of each operator."""

from typing import Any, NamedTuple

from mla_numba import MlaDims
from mla_numba.dumps import DumpSettings, write_dump

DIMS = MlaDims(70, 3, 50, 64, 18, 32)  # no weight fills its fractals
OF_RECORDS = MlaDims(70, 3, 50, 512, 18, 64)
INDEXER = {"indexer_heads": 3, "indexer_head_dim": 32}
SEQUENCES = {"sequences": 2, "context": 21}


class Case(NamedTuple):
    """A call of an operator: its settings, mode and choices."""

    settings: DumpSettings
    quant: str = "b"
    choices: dict[str, Any] = {}  # noqa: RUF012

    def write(self, folder, t=5, **how):
        write_dump(folder, t, self.quant, settings=self.settings, **(self.choices | how))
        return folder


def settings(operator, **fields):
    return DumpSettings(**({"dims": DIMS, "block_size": 4, "operator": operator} | fields))


CASES = {
    "indexer": Case(settings("lightning_indexer_prolog_quant", **INDEXER, epsilon_k=1e-3)),
    "indexer nz": Case(
        settings("lightning_indexer_prolog_quant", **INDEXER, cache_mode="PA_NZ", nz=True, rope="interleaved")
    ),
    "both": Case(settings("mla_indexer_prolog_quant", **INDEXER, epsilon_cq=1e-3, epsilon_ckv=1e-2)),
    "both nz": Case(
        settings("mla_indexer_prolog_quant", **INDEXER, cache_mode="PA_NZ", nz=True, rope="interleaved"),
        "ab", {"smooth": True, "scale_dtype": "float16"},
    ),
    "index": Case(settings("lightning_indexer_quant", dims=None, **INDEXER, k=6), choices=SEQUENCES),
    "index nz": Case(settings("lightning_indexer_quant", dims=None, **INDEXER, cache_mode="PA_NZ", k=30)),
    "attention": Case(settings("sparse_flash_attention_quant", k=6), choices=SEQUENCES),
    "attention nz": Case(
        settings("sparse_flash_attention_quant", cache_mode="PA_NZ", k=6),
        choices=SEQUENCES | {"scale_dtype": "float16"},
    ),
    "attention bf16": Case(settings("sparse_flash_attention_quant", k=6, softmax_scale=0.3), "none", {"context": 9}),
    "dense": Case(settings("sparse_flash_attention_quant", dense=True), choices={"sequences": 5, "context": 20}),
    "flash": Case(settings("sparse_flash_attention_quant", k=19, flash_tile=8), choices={"context": 20}),
    "records": Case(
        settings("sparse_attention_antiquant", dims=OF_RECORDS, k=6), choices=SEQUENCES
    ),
    "records flashmla": Case(
        settings("sparse_attention_antiquant", dims=OF_RECORDS, dense=True, record_order="flashmla"),
        choices={"context": 9},
    ),
}  # fmt: skip
OPERATORS = ("indexer", "both", "index", "attention", "records")  # a case of each
