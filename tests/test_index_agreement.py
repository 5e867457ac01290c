"""Selected keys of others against the oracle's: each kind of agreement, and each fault by token and reason."""

import numpy as np
import pytest
from helpers import BF16

import mla_numba as mla
from mla_numba.reference import indexer_prolog_reference, lightning_index_reference
from mla_numba.tolerance import compare_index
from mla_numba.verify import check_indexer_output

SCALES = (4096, 4096, 1, 4094, 8, 4080)  # of the keys


def make(*tokens):
    """The arguments of tokens that see all six keys; their scores are the scales times the token's number."""
    cache = mla.IndexerCache.allocate(mla.IndexerDims(8, 8, 1, 32, 8), 3, 2)
    cache.k[..., 0] = 64
    cache.k_scale[...] = np.array(SCALES, np.float16).reshape(3, 2, 1, 1)
    t = len(tokens)
    query = np.zeros((t, 1, 32), np.int8)
    query[:, :, 0] = 32
    out = mla.IndexerOutput(query, np.ones((t, 1, 1), np.float16), np.array(tokens, np.float16)[:, None])
    return out, cache, np.tile(np.arange(3), (t, 1)), np.full(t, 6)


def compare(rows, tokens=(1,), **settings):
    return compare_index(np.array(rows, np.int32), *make(*tokens), **settings)


def counts(found):
    return found.n_same_list, found.n_same_keys, found.n_close, found.n_wrong


class TestKinds:
    def test_the_oracle_s_own_list(self):
        arguments = make(1, 2, -1)
        found = compare_index(lightning_index_reference(*arguments, k=4), *arguments)
        assert counts(found) == (3, 0, 0, 0)
        assert found.exact
        assert found.passed
        assert found.first_wrong is None

    def test_another_order_is_not_exact_and_passes(self):
        found = compare([[1, 0, 3]])
        assert counts(found) == (0, 1, 0, 0)
        assert found.passed
        assert not found.exact

    def test_other_keys_of_equal_scores(self):
        assert counts(compare([[1]])) == (0, 0, 1, 0)  # where the oracle has 0
        assert counts(compare([[0]])) == (1, 0, 0, 0)

    @pytest.mark.parametrize(("relative", "kind"), [(1e-3, (0, 0, 1, 0)), (4e-4, (0, 0, 0, 1)), (0, (0, 0, 0, 1))])
    def test_close_scores(self, relative, kind):
        """4094 in place of 4096, which is 4.9e-4 of it less."""
        assert counts(compare([[3]], relative=relative)) == kind

    def test_what_is_missing_has_to_be_close_too(self):
        """The three best are 4096, 4096 and 4094; 4080 in place of a 4096 is 3.4e-3 of the last below it."""
        assert counts(compare([[0, 3, 5]], relative=4e-3)) == (0, 0, 1, 0)
        assert counts(compare([[0, 3, 5]], relative=1e-3)) == (0, 0, 0, 1)
        found = compare([[2, 4, 0]], relative=4e-3)
        assert found.reason == "position 2 scores 1, the last of the 3 best 4094"

    def test_each_token_is_one_of_them(self):
        found = compare([[0, 1], [1, 0], [0, 3], [0, 2]], (1, 2, 1, 1), relative=1e-3)
        assert counts(found) == (1, 1, 1, 1)
        assert (found.n_tokens, found.first_wrong) == (4, 3)
        assert str(found) == (
            "1 of 4 lists equal, 1 in another order, 1 with others of close scores, 1 wrong; first at token 3: "
            "position 2 scores 1, the last of the 2 best 4096"
        )


class TestFaults:
    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            ([0, 6, 1], "expected 3 of positions 0 to 5, got 6"),
            ([0, -1, -1], "expected 3 of positions 0 to 5, got -1"),
            ([0, -7, 1], "expected 3 of positions 0 to 5, got -7"),
            ([0, 1, 0], "expected each position once, got 0 again"),
            ([0, 1, 3, 5, 4, 2, 2], "expected -1 behind 6 positions, got 2"),
        ],
    )
    def test_lists_that_are_none(self, row, reason):
        found = compare([row])
        assert counts(found) == (0, 0, 0, 1)
        assert (found.first_wrong, found.reason) == (0, reason)
        assert not found.passed

    def test_nan_scores(self):
        """A NaN key is first in the oracle's list; without it a list is wrong."""
        out, cache, table, act_seq = make(1)
        cache.k_scale[1, 0] = np.nan
        assert counts(compare_index(np.array([[2, 0]]), out, cache, table, act_seq)) == (1, 0, 0, 0)
        assert counts(compare_index(np.array([[0, 1]]), out, cache, table, act_seq)) == (0, 0, 0, 1)

    def test_arguments(self):
        arguments = make(1, 1)
        with pytest.raises(TypeError, match=r"^got: expected dtype int32 or int64, got float64"):
            compare_index(np.zeros((2, 2)), *arguments)
        for shape in ((1, 2), (2,), (2, 2, 1)):
            with pytest.raises(ValueError, match=r"^got: expected shape \(2, any\), got"):
                compare_index(np.zeros(shape, np.int32), *arguments)
        with pytest.raises(TypeError, match=r"^relative: expected a number, got str"):
            compare_index(np.zeros((2, 2), np.int32), *arguments, relative="1e-4")

    def test_no_tokens(self):
        found = compare_index(np.zeros((0, 3), np.int32), *make())
        assert counts(found) == (0, 0, 0, 0)
        assert found.exact


class TestOutputs:
    @pytest.fixture
    def case(self):
        layer = mla.MlaDims(16, 2, 9, 8, 3, 4)
        weights = mla.IndexerWeights.random(layer, n_heads=3, head_dim=8)
        rng = np.random.default_rng(0)
        x, cos, sin = (rng.standard_normal((2, n)).astype(np.float32).astype(BF16) for n in (16, 4, 4))
        codes, scale = rng.integers(-127, 128, (2, 9), np.int8), np.ones((2, 1), np.float32)
        cache = mla.IndexerCache.allocate(weights.dims, 1, 4)
        want = indexer_prolog_reference(weights, x, codes, scale, cos, sin, np.array([2, 0]), cache)
        copies = [array.copy() for array in want]
        return mla.IndexerOutput(*copies[:3]), mla.IndexerCache(*copies[3:]), want

    def test_equal(self, case):
        assert check_indexer_output(*case) == []

    @pytest.mark.parametrize("name", ["query", "query_scale", "weights", "k_cache", "k_scale_cache"])
    def test_a_bit_of_each(self, case, name):
        out, cache, want = case
        array = (out._asdict() | cache.arrays())[name]
        array.view(np.uint8).reshape(-1)[-1] ^= 1
        found = check_indexer_output(out, cache, want)
        assert [mismatch.name for mismatch in found] == [name]
        assert found[0].n_differ == 1

    def test_types(self, case):
        out, cache, want = case
        for wrong, name in (((tuple(out), cache, want), "output"), ((out, want, want), "cache"), ((out, cache, out),
                            "reference")):  # fmt: skip
            with pytest.raises(TypeError, match=rf"^{name}: expected "):
                check_indexer_output(*wrong)
