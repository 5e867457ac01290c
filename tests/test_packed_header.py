"""Headers of packed files that somebody else wrote: the checksum is right, a field is not."""

import copy
import json
import os
import struct
import zlib
from dataclasses import fields, replace
from itertools import product

import numpy as np
import pytest
from helpers import MODES, assert_same_bits, make_weights

from mla_numba import IndexerWeights, MlaDims, PackedIndexer, PackedWeights
from mla_numba.weights.mapped_file import read_arrays
from mla_numba.weights.packed_gemm import PackedGemm

DIMS = MlaDims(64, 2, 32, 32, 16, 8)
PREFIX = struct.Struct("<8sIII")
POOL = (None, True, -1, 0, 1, 2**31, 2**63, 10**30, 1.5, float("nan"), "x", [], {})
GONE = object()
VALUES = ("epsilon", "epsilon_cq", "epsilon_ckv", "least_magnitude")  # any in range is as good as another: it is taken


def indexer_weights(rope="half"):
    return IndexerWeights.random(DIMS, n_heads=2, head_dim=16, rope=rope)


class File:
    """A file of packed weights whose header can be changed: of a prolog in a mode, or of an indexer."""

    def __init__(self, path, kind="b smooth"):
        self.path = path
        self.weights = (indexer_weights() if kind == "indexer" else make_weights(DIMS, kind)).pack()
        self.weights.save(path)
        raw = path.read_bytes()
        n = PREFIX.unpack(raw[: PREFIX.size])[2]
        self.header = json.loads(raw[PREFIX.size : PREFIX.size + n])
        self._data = raw[4096:]

    def write(self, header):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        assert len(text) < 4000
        prefix = PREFIX.pack(b"mla-pack", 1, len(text), zlib.crc32(text)) + text
        self.path.write_bytes(prefix.ljust(4096, b"\0") + self._data)

    def changed(self, place, value):
        """The header with another value at a place, or without it."""
        header = copy.deepcopy(self.header)
        at = header
        for key in place[:-1]:
            at = at[key]
        if value is GONE:
            del at[place[-1]]
        else:
            at[place[-1]] = value
        return header

    def places(self):
        """Of each value in the header, objects and lists too, the keys that lead to it."""

        def walk(value, place):
            if place:
                yield place
            items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
            for key, inner in items:
                yield from walk(inner, (*place, key))

        return list(walk(self.header, ()))

    def refuses(self, text=""):
        for verify in (False, True):
            with pytest.raises(ValueError, match=text) as caught:
                type(self.weights).load(self.path, verify=verify)
            said = str(caught.value)
            assert said.startswith(f"{self.path}: expected "), said
            assert len(said) < len(str(self.path)) + 500


@pytest.fixture
def file(tmp_path):
    return File(tmp_path / "layer.mla")


def assert_equal(got, want, but=()):
    """The same values and arrays, of products too, but for those that are named."""
    assert type(got) is type(want)
    for name in (field.name for field in fields(want)):
        ours, theirs = getattr(got, name), getattr(want, name)
        if isinstance(theirs, np.ndarray):
            assert_same_bits(name, ours, theirs)
        elif isinstance(theirs, PackedGemm):
            assert_equal(ours, theirs, but)
        else:
            assert name in but or (ours == theirs and type(ours) is type(theirs)), name


@pytest.mark.parametrize("kind", ["b smooth", "indexer"])
def test_every_value_replaced_by_every_other_kind(tmp_path, kind):
    """It loads to equal weights, or is refused by the file's name."""
    file, loaded = File(tmp_path / "layer.mla", kind), set()
    for place, value in product(file.places(), (*POOL, GONE)):
        name = place[-1]
        header = file.changed(place, value)
        # 1 for 1, or a whole file of weights that are not smoothed.
        if header == file.header or (name, value) == ("smooth_scales_cq", GONE):
            continue
        file.write(header)
        try:
            got = type(file.weights).load(file.path)
        except ValueError as error:
            said = str(error)
        else:
            said = f"{file.path}: expected nothing"
            loaded.add(name)
            assert_equal(got, file.weights, but=[name] if name in VALUES else ())
            assert not name.startswith("epsilon") or getattr(got, name) == value
            assert name != "kind" or value is GONE  # as in files of before there were indexers
        assert said.startswith(f"{file.path}: expected "), (place, value, said)
    of_kind = {"epsilon"} if kind == "indexer" else {"epsilon_cq", "epsilon_ckv", "kind"}
    assert loaded == {*of_kind, "least_magnitude", "isa", "crc32"}


@pytest.mark.parametrize("kind", [*MODES, "indexer"])
def test_an_unchanged_one_loads(tmp_path, kind):
    file = File(tmp_path / "layer.mla", kind)
    file.write(file.header)
    assert_equal(type(file.weights).load(file.path, verify=True), file.weights)


@pytest.mark.parametrize("rope", ["half", "interleaved"])
def test_an_indexer_comes_back_as_it_was(tmp_path, rope):
    weights = replace(indexer_weights(rope), epsilon=1e-3).pack()
    weights.save(tmp_path / "indexer.mla")
    assert_equal(PackedIndexer.load(tmp_path / "indexer.mla", verify=True), weights)


def test_a_file_of_the_other_kind(tmp_path):
    prolog, indexer = File(tmp_path / "layer.mla"), File(tmp_path / "indexer.mla", "indexer")
    with pytest.raises(ValueError, match=r"indexer.mla: expected the packed weights of a prolog, got those of an ind"):
        PackedWeights.load(indexer.path)
    with pytest.raises(ValueError, match=r"layer.mla: expected the packed weights of an indexer, got those of a prol"):
        PackedIndexer.load(prolog.path)
    prolog.write(prolog.changed(("facts", "kind"), "x" * 500))
    prolog.refuses("expected the packed weights of a prolog, got those of 'xxx")


@pytest.mark.parametrize(
    ("place", "value", "text"),
    [
        (("arrays", "ln_beta_k", "dtype"), "int32", "expected ln_beta_k of the size and type"),
        (("arrays", "ln_gamma_k"), GONE, "expected ln_gamma_k of the size and type"),
        (("arrays", "up.col_scale"), GONE, "expected up of the size and type"),
        (("facts", "rope"), "quarter", "facts of an indexer, got others: rope: expected one of half, interleaved, got"),
        (("facts", "epsilon"), -1e-9, "facts of an indexer, got others: epsilon: expected a number of at least 0"),
        (("facts", "dims", "hidden_size"), 6400, "expected down of the size and type"),
        (("facts", "dims", "n_heads"), 200, r"expected (down|up) of the size and type"),
        (("facts", "dims", "head_dim"), 1025, "head_dim: expected at most 1024, got 1025"),
        (("facts", "dims", "head_dim"), 1024, r"expected ln_gamma_k of the size and type"),
        (("facts", "dims", "qk_rope_head_dim"), 18, "qk_rope_head_dim: expected at most the 16 columns of a head"),
        (("facts", "dims", "q_lora_rank"), 2**31 - 1, "dims.q_lora_rank: expected at most .* rows"),
        (("facts", "gemms", "hadamard_k", "least_magnitude"), 0x8000, "expected hadamard_k of the size and type"),
        (("facts", "gemms", "hadamard_q"), GONE, "expected hadamard_q, an object, got None"),
        (("facts", "packing", "nr"), 7, "expected panels as .* reads them"),
    ],
)
def test_a_field_of_an_indexer(tmp_path, place, value, text):
    file = File(tmp_path / "indexer.mla", "indexer")
    file.write(file.changed(place, value))
    file.refuses(text)


@pytest.mark.parametrize(
    ("place", "value", "text"),
    [
        (("arrays", "gamma_cq", "start"), -4096, r"arrays.gamma_cq.start, an integer from 0 to \d+, got -4096"),
        (("arrays", "gamma_cq", "start"), 4, "arrays.gamma_cq.start, a multiple of 4096, got 4"),
        (("arrays", "gamma_cq", "start"), 0, r"arrays.\w+.* in bytes of its own, got some of arrays"),
        (("arrays", "gamma_cq", "shape"), [2**62], r"arrays.gamma_cq within \d+ bytes, got shape"),
        (("arrays", "gamma_cq", "shape"), [0, 2**62, 2**62], r"arrays.gamma_cq within \d+ bytes, got shape"),
        (("arrays", "gamma_cq", "shape"), [32, 1], "expected gamma_cq of the size and type"),
        (("arrays", "gamma_cq", "shape"), [1] * 40, "arrays.gamma_cq.shape, at most 8 lengths"),
        (("arrays", "gamma_cq", "dtype"), "int32", "expected gamma_cq of the size and type"),
        (("arrays", "gamma_cq", "dtype"), ",", "arrays.gamma_cq.dtype, one of int8, "),
        (("arrays", "gamma_cq", "dtype"), "object", "arrays.gamma_cq.dtype, one of int8, "),
        (("facts", "epsilon_cq"), -1e-9, "epsilon_cq: expected a number of at least 0, finite in float32"),
        (("facts", "epsilon_cq"), 1e39, "epsilon_cq: expected a number of at least 0, finite in float32"),
        (("facts", "dims", "hidden_size"), 63, "dims.hidden_size: expected an even number in mode 'b', got 63"),
        (("facts", "dims", "kv_lora_rank"), 30, "dims.kv_lora_rank: expected 4 groups in mode 'b', got 30"),
        (("facts", "dims", "qk_rope_head_dim"), 7, "qk_rope_head_dim: expected an even number, got 7"),
        (("facts", "dims", "q_lora_rank"), 2**31 - 1, "dims.q_lora_rank: expected at most .* rows"),
        (("facts", "quant"), "ba", "quant: expected one of none, a, b, ab, got 'ba'"),
        (("facts", "quant"), "none", "expected up of the size and type"),
        (("facts", "gemms", "uk", "least_magnitude"), 0x8000, "expected uk of the size and type"),
        (("facts", "gemms", "up", "least_magnitude"), 1, "expected up of the size and type"),
        (("facts", "gemms", "down", "kp"), 64.0, "gemms.down.kp, an integer, got 64.0"),
        (("facts", "isa"), "x" * 500, None),
    ],
)
def test_a_field(file, place, value, text):
    file.write(file.changed(place, value))
    if text is None:
        assert_equal(PackedWeights.load(file.path), file.weights)
    else:
        file.refuses(text)


def test_scales_that_nothing_reads(tmp_path):
    """Of int8 weights in a file that says there are none, and smooth scales in a mode without."""
    file = File(tmp_path / "layer.mla", "none")
    last = file.header["arrays"]["smooth"] = file.header["arrays"].pop("gamma_ckv")
    file.write(file.header)
    file.refuses("expected arrays of packed weights, got smooth of shape")
    del file.header["arrays"]["smooth"]
    file.header["arrays"] |= {"gamma_ckv": last, "smooth_scales_cq": last | {"shape": [0], "crc32": 0}}
    file.write(file.header)
    file.refuses(r"expected arrays of packed weights, got smooth_scales_cq of shape \(0,\)")
    other = File(tmp_path / "other.mla", "b smooth")
    other.write(other.changed(("arrays", "up.offset"), GONE))
    other.refuses("expected up of the size and type")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"[]", "expected a JSON object, got list"),
        (b"{", "expected JSON, got "),
        (b"\xff", "expected JSON, got "),
        (b'{"facts": ' + b"[" * 3000, "nested too deeply|expected JSON"),
        (b"{}", "n_bytes, an integer .*, got None"),
    ],
)
def test_no_header(file, text, said):
    file.write(text)
    file.refuses(said)


def test_a_header_is_not_read_beyond_its_limit(file):
    """Of a file of 5 GiB, no byte of which is on the disk."""
    file.path.write_bytes(PREFIX.pack(b"mla-pack", 1, 0xFFFFFFFF, 0))
    os.truncate(file.path, 5 << 30)
    file.refuses("expected a header of at most 1048576 bytes, got 4294967295")


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    for name, kind in (("fifo", "a FIFO"), ("link", "a FIFO"), (".", "a folder")):
        with pytest.raises(ValueError, match=f"expected a regular file, got {kind}$"):
            read_arrays(tmp_path / name)
