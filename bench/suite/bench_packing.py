"""Packing the weights of one layer, once a load: ours in every mode, and the peers' own order of the same weights."""

from __future__ import annotations

import pytest
from shared.contenders import OURS, check_ours, make_inputs, ours
from shared.left_out import or_skipped

from mla_numba import MlaProlog
from mla_numba.oracle.bits import reference_run
from tiling import Work

from .prolog_cases import MODES


@pytest.mark.parametrize("implementation", [f"{OURS}-{mode}" for mode in MODES])
def test_pack(benchmark, suite, prolog_cases, implementation):
    quant = implementation.partition("-")[2]
    weights = prolog_cases.weights(quant)
    packed = weights.pack(suite.n_threads)
    inputs, empty = make_inputs(suite.dims, 1, 0, quantized="b" in quant)
    prolog = MlaProlog(packed, n_threads=suite.n_threads)
    check_ours(ours([prolog], inputs, empty), 0, reference_run(weights, *inputs, empty), empty)
    work = Work(weights.nbytes + packed.nbytes)
    verified = "a call on them, bit for bit against the reference"
    suite.describe(benchmark, "packing", implementation, made_of="panels of all products", verified=verified)
    suite.between_probes(benchmark, work, lambda: benchmark(weights.pack, suite.n_threads))


@pytest.mark.parametrize("implementation", ["torch-onednn"])
def test_pack_peer(benchmark, suite, prolog_cases, implementation):
    torch = pytest.importorskip("torch")
    from shared.peers import Operators
    from shared.torch_operators import DOWN, HEADS, UP, TorchWeights, beyond, named

    torch.set_num_threads(suite.n_threads)
    weights = TorchWeights(prolog_cases.weights("b"))
    operators = Operators(
        named(DOWN, "onednn bf16 prepacked"), named(UP, "onednn u8s8 prepacked"), named(HEADS, "bmm bf16")
    )

    def pack():
        return [operator.make(weights, 1) for operator in operators]

    x = torch.randn(1, suite.dims.hidden_size, dtype=torch.bfloat16)
    with or_skipped(implementation):
        wrong = beyond(pack()[0](x), x.float() @ weights.joined().float())
        assert not wrong, f"down product: {wrong}"
    read = prolog_cases.weights("b").nbytes
    work = Work(2 * read)
    verified = "the down product, within 2^-7 of its largest value"
    suite.describe(benchmark, "packing", implementation, made_of=str(operators), verified=verified)
    suite.between_probes(benchmark, work, lambda: benchmark(pack))
