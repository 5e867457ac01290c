"""Headers of packed files that somebody else wrote: the checksum is right, a field is not."""

import copy
import json
import os
import struct
import zlib
from itertools import product

import pytest
from helpers import MODES, assert_same_bits, make_weights

from mla_numba import MlaDims, PackedWeights
from mla_numba.weights.mapped_file import read_arrays
from mla_numba.weights.packed_facts import FACTS, PRODUCTS

DIMS = MlaDims(64, 2, 32, 32, 16, 8)
PREFIX = struct.Struct("<8sIII")
POOL = (None, True, -1, 0, 1, 2**31, 2**63, 10**30, 1.5, float("nan"), "x", [], {})
GONE = object()
VALUES = ("epsilon_cq", "epsilon_ckv", "least_magnitude")  # any in range is as good as another: it is taken


class File:
    """A file of packed weights whose header can be changed."""

    def __init__(self, path, mode="b smooth"):
        self.path = path
        self.weights = make_weights(DIMS, mode).pack()
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
                PackedWeights.load(self.path, verify=verify)
            said = str(caught.value)
            assert said.startswith(f"{self.path}: expected "), said
            assert len(said) < len(str(self.path)) + 500


@pytest.fixture
def file(tmp_path):
    return File(tmp_path / "layer.mla")


def assert_equal(got, want, but=()):
    for name in ("dims", "quant", "epsilon_cq", "epsilon_ckv"):
        assert name in but or getattr(got, name) == getattr(want, name)
    for name in ("gamma_cq", "gamma_ckv", "smooth_scales_cq"):
        assert_same_bits(name, getattr(got, name), getattr(want, name))
    for name in PRODUCTS:
        for part in ("panels", "offset", "col_scale"):
            assert_same_bits(part, getattr(getattr(got, name), part), getattr(getattr(want, name), part))
        for fact in FACTS:
            assert fact in but or getattr(getattr(got, name), fact) == getattr(getattr(want, name), fact)


def test_every_value_replaced_by_every_other_kind(file):
    """It loads to equal weights, or is refused by the file's name."""
    loaded = set()
    for place, value in product(file.places(), (*POOL, GONE)):
        name = place[-1]
        header = file.changed(place, value)
        # 1 for 1, or a whole file of weights that are not smoothed.
        if header == file.header or (name, value) == ("smooth_scales_cq", GONE):
            continue
        file.write(header)
        try:
            got = PackedWeights.load(file.path)
        except ValueError as error:
            said = str(error)
        else:
            said = f"{file.path}: expected nothing"
            loaded.add(name)
            assert_equal(got, file.weights, but=[name] if name in VALUES else ())
            assert not name.startswith("epsilon") or getattr(got, name) == value
        assert said.startswith(f"{file.path}: expected "), (place, value, said)
    assert loaded == {*VALUES, "isa", "crc32"}


@pytest.mark.parametrize("mode", MODES)
def test_an_unchanged_one_loads(tmp_path, mode):
    file = File(tmp_path / "layer.mla", mode)
    file.write(file.header)
    assert_equal(PackedWeights.load(file.path, verify=True), file.weights)


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
