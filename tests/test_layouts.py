"""Layouts of other systems: bytes by hand, addresses by the formula, round trips, and what is refused by name."""

import ml_dtypes
import numpy as np
import pytest
from helpers import BF16, assert_same_bits, random_bytes

from mla_numba import PagedCache, reference
from mla_numba.layouts import (
    RECORD_ORDERS,
    RecordFields,
    from_fractal_nz,
    from_records,
    pa_bsnd_to_pa_nz,
    pa_nz_to_pa_bsnd,
    to_fractal_nz,
    to_records,
)
from tiling import ceil_div, round_up

INT8 = np.dtype(np.int8)
DTYPES = (INT8, BF16)
SIZES = (1, 2, 15, 16, 17, 31, 32, 33, 50, 64)


def random_array(shape, dtype, seed=0):
    """Every bit pattern, NaNs among them."""
    return random_bytes(np.random.default_rng(seed), np.empty(shape, dtype))


def c0_of(dtype):
    return 32 // dtype.itemsize


class TestFractalNz:
    def test_int8_bytes(self):
        """K 17 is padded to 32, N 33 to 64: column fractals of 32 * 32 bytes."""
        weight = np.zeros((17, 33), np.int8)
        weight[0, 0], weight[0, 31], weight[1, 0], weight[16, 2], weight[0, 32], weight[16, 32] = 1, 2, 3, 4, 5, 6
        fractals = to_fractal_nz(weight)
        assert fractals.shape == (2, 2, 16, 32)
        raw = fractals.tobytes()
        assert {i: byte for i, byte in enumerate(raw) if byte} == {0: 1, 31: 2, 32: 3, 514: 4, 1024: 5, 1536: 6}

    def test_bf16_bytes(self):
        """K 2 is padded to 16, N 17 to 32: column fractals of 16 * 16 elements, 512 bytes."""
        weight = np.zeros((2, 17), BF16)
        weight[0, 1], weight[1, 0], weight[0, 16], weight[1, 16] = 1, 2, -1, 3
        fractals = to_fractal_nz(weight)
        assert fractals.shape == (2, 1, 16, 16)
        raw = fractals.tobytes()
        assert raw[2:4] == bytes.fromhex("803f")
        assert raw[32:34] == bytes.fromhex("0040")
        assert raw[512:514] == bytes.fromhex("80bf")
        assert raw[544:546] == bytes.fromhex("4040")
        assert sum(byte != 0 for byte in raw) == 7

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("k", SIZES)
    def test_addresses_by_the_formula(self, k, dtype):
        c0, kp = c0_of(dtype), round_up(k, 16)
        for n in SIZES:
            weight = random_array((k, n), dtype, n)
            fractals = to_fractal_nz(weight)
            assert fractals.shape == (ceil_div(n, c0), kp // 16, 16, c0)
            assert fractals.flags.c_contiguous
            row, column = np.mgrid[:k, :n]
            address = (column // c0) * kp * c0 + row * c0 + column % c0
            flat = fractals.reshape(-1)
            assert_same_bits("elements", flat[address], weight)
            padding = np.ones(flat.size, bool)
            padding[address] = False
            assert not flat[padding].view(np.uint8).any()
            back = from_fractal_nz(fractals, k, n)
            assert back.flags.c_contiguous
            assert_same_bits("round trip", back, weight)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_batches_are_one_weight_after_the_other(self, dtype):
        weights = random_array((2, 3, 19, 37), dtype)
        fractals = to_fractal_nz(weights)
        for i in np.ndindex(2, 3):
            assert_same_bits(f"weight {i}", fractals[i], to_fractal_nz(weights[i]))
        assert_same_bits("round trip", from_fractal_nz(fractals, 19, 37), weights)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_any_strides(self, dtype):
        weight = random_array((40, 66), dtype)
        for view in (weight.T, weight[::-3, 1::2], np.asfortranarray(weight)):
            fractals = to_fractal_nz(view)
            assert_same_bits("fractals", fractals, to_fractal_nz(view.copy()))
            wide = np.repeat(fractals, 2, axis=1)[:, ::2]
            assert_same_bits("round trip", from_fractal_nz(wide, *view.shape), np.ascontiguousarray(view))

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_nothing_is_shared(self, dtype):
        weight = random_array((16, 32), dtype)
        fractals = to_fractal_nz(weight)
        assert not np.shares_memory(fractals, weight)
        assert not np.shares_memory(from_fractal_nz(fractals, 16, 32), fractals)

    def test_types_and_shapes(self):
        for function in (to_fractal_nz, lambda a: from_fractal_nz(a, 16, 32)):
            with pytest.raises(TypeError, match=r"^(weight|fractals): expected a NumPy array, got list"):
                function([[1]])
            for dtype in ("f4", "u1", "u2", "i4"):
                with pytest.raises(TypeError, match=r"^(weight|fractals): expected dtype int8 or bfloat16, got "):
                    function(np.zeros((1, 1, 16, 32), dtype))
        for shape in ((), (3,)):
            with pytest.raises(ValueError, match=r"^weight: expected shape \(\.\.\., K, N\), got \("):
                to_fractal_nz(np.zeros(shape, np.int8))
        text = r"^fractals: expected shape \(\.\.\., 2, 3, 16, 16\) of a \(40, 20\) weight, got "
        for shape in ((2, 3, 16, 32), (3, 2, 16, 16), (1, 3, 16, 16), (3, 16, 16), (48, 32), (), (2, 3, 16, 16, 1)):
            with pytest.raises(ValueError, match=text):
                from_fractal_nz(np.zeros(shape, BF16), 40, 20)
        assert from_fractal_nz(np.zeros((2, 3, 16, 16), BF16), 40, 20).shape == (40, 20)
        for k, n, name in ((-1, 1, "k"), (1, -1, "n")):
            with pytest.raises(ValueError, match=f"^{name}: expected at least 0, got -1"):
                from_fractal_nz(np.zeros((1, 1, 16, 32), np.int8), k, n)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_a_padding_that_is_not_zero_means_other_dimensions(self, dtype):
        fractals = to_fractal_nz(np.ones((20, 10), dtype))
        for k, n in ((19, 10), (20, 9), (19, 9)):
            with pytest.raises(
                ValueError, match=rf"^fractals: expected zeros beyond row {k} and column {n}, got other"
            ):
                from_fractal_nz(fractals, k, n)
        assert from_fractal_nz(fractals, 21, 11).shape == (21, 11)

    def test_a_padding_of_nan_is_not_zero(self):
        fractals = to_fractal_nz(np.ones((20, 10), BF16))
        fractals[0, 1, 15, 0] = np.nan
        with pytest.raises(ValueError, match=r"^fractals: expected zeros"):
            from_fractal_nz(fractals, 20, 10)
        fractals[0, 1, 15, 0] = -0.0
        assert from_fractal_nz(fractals, 20, 10).shape == (20, 10)


class TestPagedNz:
    def test_bytes(self):
        """Two slots of two runs of 32 codes: run 0 of both slots, then run 1 of both."""
        cache = np.arange(128, dtype=np.int8).reshape(1, 2, 1, 64)
        a, b, c, d = (bytes(range(i, i + 32)) for i in range(0, 128, 32))
        assert cache.tobytes() == a + b + c + d
        assert pa_bsnd_to_pa_nz(cache).tobytes() == a + c + b + d
        assert pa_nz_to_pa_bsnd(cache).tobytes() == a + c + b + d
        cache = np.arange(96).astype(BF16).reshape(1, 3, 1, 32)  # three slots of two runs of 16
        want = [*range(16), *range(32, 48), *range(64, 80), *range(16, 32), *range(48, 64), *range(80, 96)]
        assert pa_bsnd_to_pa_nz(cache).astype(int).reshape(-1).tolist() == want

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("block_size", [1, 3, 16, 128])
    def test_addresses_by_the_formula(self, block_size, dtype):
        cache = random_array((3, block_size, 1, 96), dtype)
        nz = pa_bsnd_to_pa_nz(cache)
        assert nz.shape == cache.shape
        flat = nz.reshape(-1)
        for slot in range(3 * block_size):
            at = reference.nz_addresses(slot, block_size, 96, c0_of(dtype))
            assert_same_bits(f"slot {slot}", flat[at], cache[slot // block_size, slot % block_size, 0])
        assert_same_bits("round trip", pa_nz_to_pa_bsnd(nz), cache)
        assert not np.shares_memory(nz, cache)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_strided_blocks(self, dtype):
        part = random_array((6, 5, 1, 64), dtype)[1::2, 1:4]
        assert_same_bits("nz", pa_bsnd_to_pa_nz(part), pa_bsnd_to_pa_nz(part.copy()))
        assert_same_bits("bsnd", pa_nz_to_pa_bsnd(part), pa_nz_to_pa_bsnd(part.copy()))

    @pytest.mark.parametrize("convert", [pa_bsnd_to_pa_nz, pa_nz_to_pa_bsnd])
    def test_errors(self, convert):
        with pytest.raises(TypeError, match=r"^cache: expected a NumPy array, got PagedCache"):
            convert(PagedCache(*(np.zeros((1, 1, 1, 32), t) for t in (BF16, BF16))))
        with pytest.raises(TypeError, match=r"^cache: expected dtype int8 or bfloat16, got float32"):
            convert(np.zeros((1, 1, 1, 32), np.float32))
        for shape in ((4, 1, 32), (1, 4, 2, 32), (1, 4, 1, 1, 32)):
            with pytest.raises(ValueError, match=r"^cache: expected shape \(blocks, block_size, 1, d\), got \("):
                convert(np.zeros(shape, BF16))
        for dtype, d in ((INT8, 48), (BF16, 24)):
            with pytest.raises(ValueError, match=rf"^cache: expected rows of a multiple of {c0_of(dtype)} .*got {d}"):
                convert(np.zeros((1, 4, 1, d), dtype))


def random_rows(*lead):
    return RecordFields(
        random_array((*lead, 512), INT8, 1), random_array((*lead, 4), np.float32, 2), random_array((*lead, 64), BF16, 3)
    )


@pytest.fixture(params=["cann", "flashmla"])
def order(request):
    return request.param


class TestRecords:
    def test_orders(self):
        assert RECORD_ORDERS == {"cann": ("codes", "rope", "scales"), "flashmla": ("codes", "scales", "rope")}

    @pytest.mark.parametrize(("order", "rope_at", "scales_at"), [("cann", 512, 640), ("flashmla", 528, 512)])
    def test_bytes(self, order, rope_at, scales_at):
        codes = np.zeros(512, np.int8)
        codes[[0, 1, 511]] = 1, -1, -128
        rope = np.zeros(64, BF16)
        rope[[0, 63]] = 1, -2
        record = to_records(codes, np.array([1, 0.5, -1, 2], np.float32), rope, order=order)
        assert record.shape == (656,)
        assert record.dtype == np.uint8
        raw = record.tobytes()
        assert raw[:2] == b"\x01\xff"
        assert raw[511:512] == b"\x80"
        assert not any(raw[2:511])
        assert raw[scales_at : scales_at + 16] == bytes.fromhex("0000803f 0000003f 000080bf 00000040")
        assert raw[rope_at : rope_at + 128] == bytes.fromhex("803f") + bytes(124) + bytes.fromhex("00c0")

    @pytest.mark.parametrize("lead", [(), (7,), (0,), (3, 16, 1)])
    def test_round_trip(self, order, lead):
        rows = random_rows(*lead)
        records = to_records(*rows, order=order)
        assert records.shape == (*lead, 656)
        back = from_records(records, order=order)
        for name, got, want in zip(rows._fields, back, rows, strict=True):
            assert_same_bits(name, got, want)
            assert got.flags.c_contiguous
            assert got.flags.writeable
            assert not np.shares_memory(got, records)
        for name, got, want in zip(rows._fields, from_records(records.view(np.int8), order=order), rows, strict=True):
            assert_same_bits(name, got, want)

    def test_the_other_order_is_other_values(self):
        rows = random_rows(5)
        cann, flashmla = (to_records(*rows, order=order) for order in RECORD_ORDERS)
        assert_same_bits("codes", cann[:, :512], flashmla[:, :512])
        assert (cann[:, 512:] != flashmla[:, 512:]).any(axis=1).all()

    def test_any_strides(self, order):
        rows = RecordFields(*(field[::2] for field in random_rows(6)))
        wide = RecordFields(*(np.repeat(field, 2, axis=-1)[..., ::2] for field in rows))
        want = to_records(*(field.copy() for field in rows), order=order)
        for given in (rows, wide):
            assert_same_bits("records", to_records(*given, order=order), want)
        for records in (np.repeat(want, 2, axis=0)[::2], np.repeat(want, 3, axis=1)[:, ::3], np.asfortranarray(want)):
            for name, got, field in zip(rows._fields, from_records(records, order=order), rows, strict=True):
                assert_same_bits(name, got, field.copy())

    def test_arrays_of_a_cache(self, order):
        """A record a slot, whatever numbers a cache holds; back in another cache they are read alike."""
        rows = random_rows(2, 8, 1)
        rows.scales[...] = np.random.default_rng(0).uniform(0.1, 1, rows.scales.shape)
        cache = PagedCache(rows.codes, rows.rope, rows.scales)
        twin_codes, twin_scales, twin_rope = from_records(
            to_records(cache.kv, cache.k_scale, cache.kr, order=order), order=order
        )
        twin = PagedCache(twin_codes, twin_rope, twin_scales)
        for got, want in zip(twin.gather(np.arange(16)), cache.gather(np.arange(16)), strict=True):
            assert_same_bits("rows", got, want)

    def test_the_order_has_no_default(self):
        rows = random_rows(1)
        with pytest.raises(TypeError, match="order"):
            to_records(*rows)
        with pytest.raises(TypeError, match="positional"):
            to_records(*rows, "cann")
        records = to_records(*rows, order="cann")
        with pytest.raises(TypeError, match="order"):
            from_records(records)
        for call in (lambda o: to_records(*rows, order=o), lambda o: from_records(records, order=o)):
            with pytest.raises(ValueError, match=r"^order: expected one of cann, flashmla, got 'vllm'"):
                call("vllm")
            with pytest.raises(TypeError, match=r"^order: expected str, got NoneType"):
                call(None)

    def test_errors(self, order):
        rows = random_rows(5)._asdict()
        right = {"codes": "int8", "scales": "float32", "rope": "bfloat16"}
        for name, dtype in right.items():
            with pytest.raises(TypeError, match=f"^{name}: expected a NumPy array, got list"):
                to_records(**(rows | {name: [0]}), order=order)
            for wrong in (np.uint8, np.float16, np.uint16, ">f4", ml_dtypes.float8_e4m3fn):
                with pytest.raises(TypeError, match=f"^{name}: expected dtype {dtype}, got "):
                    to_records(**(rows | {name: np.zeros(rows[name].shape, wrong)}), order=order)
            for wrong in (rows[name][:, 1:], np.zeros((), rows[name].dtype), rows[name][None, :, 1:]):
                with pytest.raises(ValueError, match=rf"^{name}: expected shape \(.*{rows[name].shape[1]}\), got \("):
                    to_records(**(rows | {name: wrong}), order=order)
        for name in ("scales", "rope"):
            for wrong in (rows[name][1:], rows[name][0], rows[name][None]):
                with pytest.raises(ValueError, match=rf"^{name}: expected shape \(5, {rows[name].shape[1]}\), got \("):
                    to_records(**(rows | {name: wrong}), order=order)
        for wrong in (np.zeros((2, 655), np.uint8), np.zeros((656, 1), np.uint8), np.array(1, np.uint8)):
            with pytest.raises(ValueError, match=r"^records: expected shape \(\.\.\., 656\), got \("):
                from_records(wrong, order=order)
        with pytest.raises(TypeError, match=r"^records: expected dtype uint8 or int8, got float32"):
            from_records(np.zeros((2, 656), np.float32), order=order)
        with pytest.raises(TypeError, match=r"^records: expected a NumPy array, got bytes"):
            from_records(bytes(656), order=order)
