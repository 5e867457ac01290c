"""Packed weights as files: mapped back they compute the same bits, and what does not fit is refused by name."""

import json
import os
import platform
import re
import struct
import zlib

import numpy as np
import pytest
from helpers import BF16, MODES, assert_same_bits, make_call, make_inputs, make_weights, run_python

from mla_numba import MlaDims, MlaProlog, PackedWeights
from mla_numba.kernels import CHOICE, ISA
from mla_numba.oracle.bits import reference_run
from mla_numba.weights import packed_gemm
from mla_numba.weights.mapped_file import read_arrays, write_arrays
from tiling import round_up

DIMS = MlaDims(130, 3, 50, 68, 33, 34)
PREFIX = struct.Struct("<8sIII")
PRODUCTS = ("down", "up", "uk")
FACTS_OF_PANELS = ("order", "nr", "kr_bf16", "order_bf16", "kr_int8", "order_int8", "a_offset", "odd_k_first")
VECTORS = ("gamma_cq", "gamma_ckv", "smooth_scales_cq")


def edit(path, change):
    """Rewrites a file's header; `change` takes and edits what JSON holds. The checksum is made right again."""
    old = path.read_bytes()
    magic, version, n, _ = PREFIX.unpack(old[: PREFIX.size])
    header = json.loads(old[PREFIX.size : PREFIX.size + n])
    change(header)
    text = json.dumps(header).encode()
    assert PREFIX.size + len(text) <= 4096
    data = old[round_up(PREFIX.size + n, 4096) :]
    path.write_bytes((PREFIX.pack(magic, version, len(text), zlib.crc32(text)) + text).ljust(4096, b"\0") + data)


@pytest.fixture
def saved(tmp_path):
    weights = make_weights(DIMS, "b")
    path = tmp_path / "layer.mla"
    weights.pack().save(path)
    return path


class TestArrayFile:
    def test_by_hand(self, tmp_path):
        path = tmp_path / "two"
        write_arrays(path, {"a": 1}, {"x": np.array([1, 2], np.int16), "y": np.array([[3.0]], np.float32)})
        raw = path.read_bytes()
        assert raw[:8] == b"mla-pack"
        version, n, crc = struct.unpack("<III", raw[8:20])
        assert version == 1
        assert zlib.crc32(raw[20 : 20 + n]) == crc
        header = json.loads(raw[20 : 20 + n])
        assert header["facts"] == {"a": 1}
        assert header["n_bytes"] == 4100
        assert header["arrays"]["x"]["crc32"] == zlib.crc32(b"\1\0\2\0")
        assert raw[4096:4100] == b"\1\0\2\0"
        assert raw[8192:] == struct.pack("<f", 3)
        facts, arrays = read_arrays(path, verify=True)
        assert facts == {"a": 1}
        assert arrays["x"].tolist() == [1, 2]
        assert arrays["y"].tolist() == [[3]]

    def test_arrays_start_at_pages_and_take_writes(self, saved):
        before = saved.read_bytes()
        arrays = read_arrays(saved).arrays
        for array in arrays.values():
            assert array.__array_interface__["data"][0] % 4096 == 0
            assert array.flags.writeable  # a read-only array would be another type to the kernels
            assert type(array) is np.ndarray
            array[...] = 0
        assert saved.read_bytes() == before

    def test_an_array_of_no_elements(self, tmp_path):
        write_arrays(tmp_path / "none", {}, {"x": np.zeros((0, 3), np.int8), "y": np.ones(1, np.int8)})
        assert read_arrays(tmp_path / "none").arrays["x"].shape == (0, 3)

    def test_nothing_is_left_of_a_write_that_fails(self, tmp_path, monkeypatch):
        path = tmp_path / "file"
        path.write_bytes(b"older")

        def full(_fd):
            raise OSError("no space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space left"):
            write_arrays(path, {}, {"x": np.ones(1)})
        assert path.read_bytes() == b"older"
        assert list(tmp_path.iterdir()) == [path]

    def test_a_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            write_arrays(tmp_path / "no" / "file", {}, {})
        with pytest.raises(FileNotFoundError):
            read_arrays(tmp_path / "file")

    def test_permissions_are_those_of_any_new_file(self, saved, tmp_path):
        (tmp_path / "other").write_bytes(b"")
        assert saved.stat().st_mode == (tmp_path / "other").stat().st_mode


class TestRoundTrip:
    @pytest.mark.parametrize("mode", MODES)
    def test_every_array_and_number(self, mode, tmp_path):
        weights = make_weights(DIMS, mode).pack()
        weights.save(tmp_path / "file")
        got = PackedWeights.load(tmp_path / "file", verify=True)
        for name in ("dims", "quant", "epsilon_cq", "epsilon_ckv"):
            assert getattr(got, name) == getattr(weights, name)
            assert type(getattr(got, name)) is type(getattr(weights, name))
        for name in VECTORS:
            assert_same_bits(name, getattr(got, name), getattr(weights, name))
        for name in PRODUCTS:
            ours, theirs = getattr(got, name), getattr(weights, name)
            for part in ("panels", "offset", "col_scale"):
                assert_same_bits(f"{name}.{part}", getattr(ours, part), getattr(theirs, part))
            assert (ours.kp, ours.n_parts) == (theirs.kp, theirs.n_parts)
            assert ours.least_magnitude == theirs.least_magnitude

    @pytest.mark.parametrize("mode", ["none", "ab smooth"])
    def test_a_loaded_prolog_is_exact(self, mode, tmp_path):
        weights = make_weights(DIMS, mode)
        weights.pack().save(tmp_path / "file")
        prolog = MlaProlog.load(tmp_path / "file", "prefill", n_threads=1)
        assert (prolog.phase, prolog.n_threads) == ("prefill", 1)
        inputs = make_inputs(DIMS, 5, 32)
        call = make_call(DIMS, "b" in mode, 5, 2, 16)
        want = reference_run(weights, *inputs, call.cache)
        prolog(*inputs, call.cache, call.out)
        call.assert_equals(want)

    def test_a_file_that_is_replaced_stays_as_it_was_for_who_has_it(self, saved):
        before = PackedWeights.load(saved)
        codes = before.up.panels.copy()
        make_weights(DIMS, "b", seed=1).pack().save(saved)
        assert_same_bits("up", before.up.panels, codes)
        assert (PackedWeights.load(saved).up.panels != codes).any()


class TestRefusals:
    def refuses(self, path, text, verify=False):
        with pytest.raises(ValueError, match=text) as caught:
            MlaProlog.load(path, verify=verify)
        assert str(caught.value).startswith(f"{path}: expected ")

    def test_another_kind_of_file(self, tmp_path):
        path = tmp_path / "file"
        for content in (b"", b"PK\3\4 a zip file of some bytes"):
            path.write_bytes(content)
            self.refuses(path, r"expected packed weights, which begin with b'mla-pack', got b'")

    def test_another_version(self, saved):
        raw = bytearray(saved.read_bytes())
        raw[8] = 2
        saved.write_bytes(raw)
        self.refuses(saved, r"expected format version 1, got 2$")

    @pytest.mark.parametrize(
        ("n", "text"),
        [
            (15, "expected at least 20 bytes, got 15: the file is truncated"),
            (40, "expected a header of .* bytes, got 20: the file is truncated"),
            (4096, "got 4096: the file is truncated"),
            (-1, "the file is truncated"),
        ],
    )
    def test_truncated(self, saved, n, text):
        raw = saved.read_bytes()
        saved.write_bytes(raw[:n])
        self.refuses(saved, text)

    def test_something_behind_it(self, saved):
        raw = saved.read_bytes()
        saved.write_bytes(raw + b"\0")
        self.refuses(saved, f"expected {len(raw)} bytes, got {len(raw) + 1}: something was added")

    def test_a_bit_of_the_header(self, saved):
        raw = bytearray(saved.read_bytes())
        raw[30] ^= 1
        saved.write_bytes(raw)
        self.refuses(saved, r"expected a header of checksum [0-9a-f]{8}, got [0-9a-f]{8}: it is corrupted")

    def test_a_bit_of_the_weights_on_request(self, saved):
        raw = bytearray(saved.read_bytes())
        raw[4096] ^= 1
        saved.write_bytes(raw)
        self.refuses(saved, "expected down.panels of checksum .*: it is corrupted", verify=True)
        MlaProlog.load(saved)  # not asked for

    @pytest.mark.parametrize("name", FACTS_OF_PANELS)
    def test_other_panels(self, saved, name):
        edit(saved, lambda header: header["facts"]["packing"].update({name: 7}))
        self.refuses(saved, rf"expected panels as {ISA.name} reads them \(.*\), got those of .*{name} 7.*pack .*again")

    def test_another_byte_order(self, saved):
        edit(saved, lambda header: header.update(byte_order="middle"))
        self.refuses(saved, "expected byte order little, got middle")

    @pytest.mark.parametrize(
        ("blamed", "change"),
        [
            ("down", lambda facts: facts["dims"].update(hidden_size=1300)),
            ("up", lambda facts: facts["dims"].update(num_attention_heads=30)),
            ("uk", lambda facts: facts["dims"].update(qk_nope_head_dim=1, qk_rope_head_dim=66, kv_lora_rank=36)),
            ("down", lambda facts: facts.update(quant="ab")),
            ("down", lambda facts: facts["gemms"]["down"].update(n_parts=1)),
            ("uk", lambda facts: facts["gemms"]["uk"].update(kp=1)),
        ],
    )
    def test_sizes_that_the_kernels_would_read_beyond(self, saved, blamed, change):
        edit(saved, lambda header: change(header["facts"]))
        self.refuses(saved, rf"expected {blamed} of the size and type that dims and quant give, got another")

    def test_a_vector_of_another_size(self, saved):
        edit(saved, lambda header: header["arrays"]["gamma_cq"].update(shape=[49]))
        self.refuses(saved, r"expected gamma_cq of the size")


class TestMovedToAnotherCpu:
    def test_what_the_cpu_rounds_decides_where_the_weights_are_used(self, tmp_path, monkeypatch):
        weights = make_weights(DIMS, "none").pack()
        magnitudes = np.abs(np.concatenate([weights.uk.panels.view(BF16)]).astype(np.float32))
        least = magnitudes[magnitudes > 0].min().astype(BF16).view(np.uint16)
        monkeypatch.setattr(packed_gemm, "pairs_are_exact", lambda: False)
        assert weights.uk.least == 0
        weights.save(tmp_path / "file")  # on a CPU that rounds pairs otherwise
        monkeypatch.setattr(packed_gemm, "pairs_are_exact", lambda: True)
        moved = PackedWeights.load(tmp_path / "file")
        assert moved.uk.least == moved.uk.least_magnitude == least
        monkeypatch.setattr(packed_gemm, "pairs_are_exact", lambda: False)
        assert moved.uk.least == 0

    @pytest.mark.skipif(platform.machine() != "x86_64", reason="the CPU names are those of x86-64")
    def test_in_a_process_of_another_instruction_set(self, saved):
        probe = (
            "import sys, mla_numba\n"
            "try: print(mla_numba.MlaProlog.load(sys.argv[1], verify=True).dims.hidden_size)\n"
            "except ValueError as error: print(error)\n"
        )
        assert run_python("-c", probe, str(saved)).strip() == "130"
        for isa in CHOICE.others[-1:]:
            said = run_python("-c", probe, str(saved), MLA_NUMBA_ISA=isa)
            assert said.strip().endswith(f"on this machine, or take these by MLA_NUMBA_ISA={ISA.name}")
        if ISA.name == "avx512bf16":  # AVX-512 VNNI takes a head's columns in another order
            said = run_python("-c", probe, str(saved), NUMBA_CPU_NAME="cascadelake")
            assert "a_offset 128, odd_k_first 0), got those of avx512bf16" in said
        if ISA.name != "portable":
            said = run_python("-c", probe, str(saved), NUMBA_CPU_NAME="generic")
            assert re.search(r"expected panels as portable reads them \(order 1, nr 64, kr_bf16 1, .*a_offset 0,", said)

    def test_int8_has_none(self):
        weights = make_weights(DIMS, "b").pack()
        assert weights.up.least == 0


class TestPanelOrder:
    """Files of packed weights outlive a change of this order: raise `packed_gemm._PANEL_ORDER` with it."""

    @pytest.mark.parametrize("quantised", [False, True])
    def test_by_formula(self, quantised):
        assert packed_gemm._PANEL_ORDER == 1
        k, n, nr = 5, ISA.nr + 3, ISA.nr
        kr = ISA.kr_int8 if quantised else ISA.kr_bf16
        codes = np.arange(1, k * n + 1).reshape(k, n)
        weight = (codes % 251 - 125).astype(np.int8) if quantised else codes.astype(np.uint16).view(BF16)
        scale = np.arange(n, dtype=np.float32) if quantised else None
        gemm = packed_gemm.pack_gemm([weight], [scale], 1, rope_dims=(4,))
        columns = [*range(n - 4), n - 4, n - 2, n - 3, n - 1]  # the rope's pairs as halves
        kp = round_up(k, kr)
        places = ISA.places(quantised)
        want, flips = np.zeros((2, kp // kr, nr * kr), gemm.panels.dtype), ISA.flips(quantised)
        for j, column in enumerate(columns):
            for p in range(k):
                want[j // nr, p // kr, places[p % kr, j % nr]] = weight.view(gemm.panels.dtype)[p, column]
        want[..., places] ^= flips.astype(want.dtype)[:, None]
        assert_same_bits("panels", gemm.panels, want.reshape(-1))
        if quantised:
            sums = np.einsum("psrj,r->pj", want[..., places].astype(np.int64), ISA.surplus).reshape(-1)
            assert gemm.offset.tolist() == (-sums).tolist()
            assert gemm.col_scale[:n].tolist() == [float(c) for c in columns]
