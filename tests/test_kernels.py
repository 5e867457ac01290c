"""The building blocks under the sweeps: microkernels against their oracle, packing, task drawing, roundings."""

import threading
from dataclasses import replace
from itertools import pairwise, product

import ml_dtypes
import numba
import numpy as np
import pytest

from mla_numba.kernels import ISA, panels, scalars
from mla_numba.kernels.isa import BY_COLUMN, BY_COLUMN_REVERSED, BlockOrder
from mla_numba.kernels.llvm_ir import IN_L1, IN_L2, ONCE
from mla_numba.kernels.micro.operands import A, B, C, Second, Y
from mla_numba.kernels.micro.ukernel import (
    A_BEGIN,
    A_BF16_DTYPE,
    A_INT8_DTYPE,
    A_OFFSET,
    rows_of_two,
    ukernel,
    ukernel_store,
    ukernel_two,
    ukernel_two_store,
)  # fmt: skip
from mla_numba.kernels.row import operand
from mla_numba.kernels.threads import groups, relays, tasks
from mla_numba.weights import packed_gemm
from tiling import ceil_div, round_up

MR, NR, KR_BF16, KR_INT8 = ISA.mr, ISA.nr, ISA.kr_bf16, ISA.kr_int8
GUARD = 64
LOCALITIES = (ONCE, IN_L2, IN_L1)


@numba.njit
def call_ukernel(mr, k, a, b, c, no_subnormals):
    panel = B(b.panels, b.at, 100, 7, LOCALITIES[mr % 3])
    ukernel(mr, k, a, panel, c, no_subnormals)


@numba.njit
def call_ukernel_store(mr, k, a, b, c, no_subnormals, y):
    panel = B(b.panels, b.at, 0, 0, LOCALITIES[mr % 3])
    ukernel_store(mr, k, a, panel, c, no_subnormals, y)


@numba.njit
def call_ukernel_two(mr, k, a, b, c, no_subnormals, second):
    ukernel_two(mr, k, a, b, c, no_subnormals, second)


@numba.njit
def call_ukernel_two_store(mr, k, a, b, c, no_subnormals, y, second):
    ukernel_two_store(mr, k, a, b, c, no_subnormals, y, second)


def panel_at(panels, at):
    return B(panels, at, 0, 0, IN_L1)


def operands(rng, kind, mr, lda, k):
    if kind == "bf16":
        a = rng.standard_normal(lda * mr).astype(ml_dtypes.bfloat16)
        a = a.view(np.uint16) if np.uint16 == A_BF16_DTYPE else a.astype(np.float32)
        b = rng.standard_normal(k * NR).astype(ml_dtypes.bfloat16).view(np.uint16)
        return a, b, rng.standard_normal(mr * NR).astype(np.float32)
    codes = rng.integers(-128, 128, lda * mr)
    codes[:4] = -128
    a = (codes + int(A_OFFSET)).astype(A_INT8_DTYPE)
    b = rng.integers(-128, 128, k * NR).astype(np.int8)
    b[: NR * KR_INT8] = -128
    return a, b, rng.integers(-(2**20), 2**20, mr * NR).astype(np.int32)


@pytest.mark.parametrize("kind", ["bf16", "int8"])
@pytest.mark.parametrize("mr", range(1, MR + 1))
def test_ukernel_equals_its_oracle(kind, mr):
    rng = np.random.default_rng(mr)
    kr = KR_BF16 if kind == "bf16" else KR_INT8
    for k in (kr, 2 * kr, 3 * kr, 17 * kr, 1040):  # 1040: past where the portable int8 kernel starts a new sum
        lda = k + 4 * (mr % 3)
        for carry, normal in ((False, True), (True, True), (True, False)):
            a, b, c = operands(rng, kind, mr, lda, k)
            guard = np.full(GUARD, 77, c.dtype)
            got = np.concatenate([guard, c, guard])
            want = got.copy()
            shifted_a, shifted_b = np.pad(a, (3, 0)), np.pad(b, (5, 0))
            call_ukernel(mr, k, A(shifted_a, 3, lda), panel_at(shifted_b, 5), C(got, GUARD, carry), normal)
            ukernel(mr, k, A(a, 0, lda), panel_at(b, 0), C(want, GUARD, carry), normal)
            assert (got.view(np.int32) == want.view(np.int32)).all(), (kind, mr, k, carry, normal)
            assert (got[:GUARD] == 77).all()
            assert (got[-GUARD:] == 77).all()


@pytest.mark.parametrize("kind", ["bf16", "int8"])
@pytest.mark.parametrize("dtype", sorted({np.uint16, A_BF16_DTYPE}, key=str))
@pytest.mark.parametrize("mr", range(1, MR + 1))
def test_ukernel_store_equals_its_oracle(kind, dtype, mr):
    """What is stored, with row and column scales that make some values subnormal, infinite or NaN."""
    rng = np.random.default_rng(mr)
    kr = KR_BF16 if kind == "bf16" else KR_INT8
    row_scale = rng.uniform(0.001, 1, mr + 1).astype(np.float32)
    row_scale[1] = np.nan if mr > 4 else 1e-38
    col_scale = rng.uniform(0.001, 1, NR + 2).astype(np.float32)
    col_scale[2:6] = (1e-30, 0, 1e38, -1)
    offset = rng.integers(-(2**20), 2**20, NR + 2).astype(np.int32)
    for k, ldy in ((kr, NR), (9 * kr, NR + 5)):
        for carry, normal in ((False, True), (True, True), (True, False)):
            a, b, c = operands(rng, kind, mr, k, k)
            if kind == "bf16" and carry:
                c[:3] = (np.nan, np.inf, -np.inf)
            got = np.full(2 * GUARD + (mr - 1) * ldy + NR, 77, dtype)
            want = got.copy()
            rest = (GUARD, ldy, row_scale, 1, col_scale, offset, 2)
            given = (mr, k, A(a, 0, k), panel_at(b, 0))
            call_ukernel_store(*given, C(c.copy(), 0, carry), normal, Y(got, *rest))
            with np.errstate(all="ignore"):
                ukernel_store(*given, C(c, 0, carry), normal, Y(want, *rest))
            assert got.tobytes() == want.tobytes(), (kind, mr, k, carry, normal)


@pytest.mark.parametrize("kind", ["bf16", "int8"])
def test_two_panels_at_once_equal_one_after_the_other(kind):
    """Sums and what is stored, by as many rows as may; an instruction set without such tiles takes one panel twice."""
    rng = np.random.default_rng(7)
    kr = KR_BF16 if kind == "bf16" else KR_INT8
    apart, sums_apart, columns = 3 * NR * kr, MR * NR + 5, 2 * NR + 2
    most = int(rows_of_two(operands(rng, kind, 1, kr, kr)[1])) or 2
    for mr, k, carry, normal in product(range(1, most + 1), (kr, 7 * kr), (False, True), (True, False)):
        a, _, first = operands(rng, kind, mr, k + 4, k)
        b, c = (
            np.zeros(2 * k * NR + apart, np.uint16 if kind == "bf16" else np.int8),
            np.zeros(3 * MR * NR, first.dtype),
        )
        second = Second(k * NR + apart, sums_apart)
        for i in range(2):
            _, panel, held = operands(rng, kind, mr, k, k)
            b[i * second.panel :][: panel.size] = panel
            c[i * sums_apart :][: held.size] = held
        given, got, want = (mr, k, A(a, 0, k + 4), panel_at(b, 0)), c.copy(), c.copy()
        call_ukernel_two(*given, C(got, 0, carry), normal, second)
        ukernel_two(*given, C(want, 0, carry), normal, second)
        assert got.tobytes() == want.tobytes()
        scales = rng.uniform(0.001, 1, (2, max(mr, columns))).astype(np.float32)
        rest = (GUARD, columns, scales[0], 0, scales[1], np.arange(columns, dtype=np.int32), 1)
        for dtype in {np.uint16, A_BF16_DTYPE}:
            got = np.full(2 * GUARD + mr * columns, 77, dtype)
            want = got.copy()
            call_ukernel_two_store(*given, C(c.copy(), 0, carry), normal, Y(got, *rest), second)
            ukernel_two_store(*given, C(c.copy(), 0, carry), normal, Y(want, *rest), second)
            assert got.tobytes() == want.tobytes()
            assert (got[: GUARD + columns][GUARD + 2 * NR :] == 77).all()


def pack_a(x):
    """x (mr, k) bf16 as the activations of one register tile."""
    out = np.empty(x.shape, A_BF16_DTYPE)
    for row, taken in zip(x.view(np.uint16), out, strict=True):
        operand.bf16_operand_row(row, 1, taken)
    return out.reshape(-1)


def pack_b(w):
    """w (k, NR) bf16 as one panel."""
    out = np.empty(w.size, np.uint16)
    bits = w.view(np.uint16).reshape(-1)
    source = panels.Matrices(bits, len(w), np.arange(NR), w.size, NR)
    order = panels.Order(KR_BF16, 1, ISA.places(is_int8=False), ISA.flips(is_int8=False))
    panels.pack_panels(1, 1, panels.Share(1, 1, 1, 0), source, order, out)
    return out


def test_oracle_ukernel_by_hand():
    """One row, two steps of k: 1*3 + 2*4 in the first column, 1*5 + 2*6 in the second."""
    w = np.zeros((2, NR), ml_dtypes.bfloat16)
    w[:, :2] = ((3, 5), (4, 6))
    x = np.array([[1, 2]], ml_dtypes.bfloat16)
    c = np.full(NR, np.nan, np.float32)
    ukernel(1, 2, A(pack_a(x), 0, 2), panel_at(pack_b(w), 0), C(c, 0, False), True)
    assert c[:3].tolist() == [11, 17, 0]


@pytest.mark.parametrize("scale", [1.0, 2.0**-62, 2.0**-66])
def test_sums_that_may_be_subnormal_are_exact_too(scale):
    """Operands from 1 down to where products leave the normal numbers; an instruction that flushes would lose them."""
    rng = np.random.default_rng(0)
    x = (rng.uniform(1, 2, (MR, 64)) * scale).astype(ml_dtypes.bfloat16)
    w = (rng.uniform(1, 2, (64, NR)) * scale * rng.choice([-1, 1], (64, NR))).astype(ml_dtypes.bfloat16)
    least = [int(scalars.min_magnitude(v.view(np.uint16).reshape(-1))) for v in (x, w)]
    normal = bool(scalars.sums_stay_normal(*least))
    assert normal == (scale == 1.0)
    got, want = (np.empty(MR * NR, np.float32) for _ in range(2))
    given = (MR, 64, A(pack_a(x), 0, 64), panel_at(pack_b(w), 0))
    call_ukernel(*given, C(got, 0, False), normal)
    ukernel(*given, C(want, 0, False), normal)
    assert (got.view(np.int32) == want.view(np.int32)).all()


@pytest.mark.parametrize(
    ("least_a", "least_b", "normal"),
    [(0x3F80, 0x3F80, True), (0, 0x3F80, False), (0x3F80, 0x007F, False), (71 << 7, 71 << 7, True),
     (71 << 7, 70 << 7, False), (0x7FFF, 0x3F80, True), (0x7F80, 0x0001, False)],
)  # fmt: skip
def test_when_sums_stay_normal(least_a, least_b, normal):
    assert bool(scalars.sums_stay_normal(np.int32(least_a), np.int32(least_b))) is normal


def test_min_magnitude_passes_over_zeros():
    values = np.array([0, -0.0, 4, -2, 8], ml_dtypes.bfloat16)
    assert scalars.min_magnitude(values.view(np.uint16)) == np.float32(2).astype(ml_dtypes.bfloat16).view(np.uint16)
    assert scalars.min_magnitude(np.zeros(3, np.uint16)) == scalars.NONE_NONZERO


def test_products_of_pairs_are_taken_as_exact_where_they_are():
    assert packed_gemm.pairs_are_exact()


@numba.njit
def round_all(x, bf16, f16, back):
    for i in range(len(x)):
        bf16[i] = scalars.round_bf16(x[i])
        f16[i] = scalars.round_f16(x[i])
        back[i] = scalars.widen(bf16[i])


@pytest.mark.parametrize("compiled", [True, False])
def test_roundings_are_those_of_the_dtypes(compiled):
    rng = np.random.default_rng(0)
    n = 200_000 if compiled else 500
    bits = rng.integers(0, 2**32, n, dtype=np.uint64).astype(np.uint32)
    bits[: n // 2] = (bits[: n // 2] & np.uint32(0x87FFFFFF)) | np.uint32(0x38000000)  # fp16's range
    bits[n // 4 : n // 3] &= np.uint32(0xFFFFE000)
    bits[n // 4 : n // 3] |= np.uint32(0x1000)  # ties of fp16
    bits[n // 3 : n // 2] &= np.uint32(0xFFFF0000)
    bits[n // 3 : n // 2] |= np.uint32(0x8000)  # ties of bf16
    bits[:8] = (0, 0x80000000, 0x7F800000, 0xFF800000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F7FFFFF, 0x00000001)
    x = bits.view(np.float32)
    bf16, f16, back = np.empty(n, np.uint16), np.empty(n, np.uint16), np.empty(n, np.float32)
    (round_all if compiled else round_all.py_func)(x, bf16, f16, back)
    with np.errstate(all="ignore"):
        want_bf16, want_f16 = x.astype(ml_dtypes.bfloat16), x.astype(np.float16)
    number = ~np.isnan(x)
    assert (bf16[number] == want_bf16.view(np.uint16)[number]).all()
    assert (f16[number] == want_f16.view(np.uint16)[number]).all()
    assert np.isnan(back[~number]).all()
    assert np.isnan(f16.view(np.float16)[~number]).all()
    assert (back[number] == want_bf16.astype(np.float32)[number]).all()


def test_counters_of_two_workers_share_no_pair_of_cache_lines():
    n_workers, n_phases, n_relays = 3, 2, 4
    n = tasks.n_counters(n_workers, n_phases) + relays.n_leg_counters(n_relays)
    counters = np.zeros(n, np.int64)
    base = counters.__array_interface__["data"][0]
    made = [tasks._counter(counters, p, n_workers, w) for p in range(n_phases) for w in range(n_workers + 1)]
    made += [relays._legs_done(counters, n_relays, relay) for relay in range(n_relays)]
    at = [counter.__array_interface__["data"][0] - base for counter in made]
    assert [len(counter) for counter in made] == [1] * len(made)
    assert sorted(at) == at
    assert min(b - a for a, b in pairwise(at)) >= 128
    assert at[-1] + 8 <= counters.nbytes


@pytest.mark.parametrize("grain", [1, 2, 5])
def test_tasks_drawn_in_order_come_once_each_and_in_order(grain):
    counters, seen = np.zeros(tasks.n_counters(3, 2), np.int64), []
    for _ in range(20):
        first, end = tasks.draw_in_order(counters, 1, 3, 2, 7, grain)
        seen += range(first, end)
    assert seen == list(range(7))
    assert np.flatnonzero(counters).tolist() == [tasks.n_counters(3) + 2 * tasks.COUNTER_STRIDE]  # the owner's


GROUPS = {1: [[]], 2: [[], [0, 1, 2]], 7: [[], [0, 3, 7], [0, 1, 7], [0, 1, 3, 5, 7], list(range(8))]}


def draw_in_groups(counters, worker, n_workers, split, starts, helps):
    drawn = groups.draw_tasks(counters, worker, n_workers, split, np.array(starts, np.int64), helps)
    return [groups.task_at(drawn, split.n // split.legs, place) for place in range(drawn.first, drawn.end)]


@pytest.mark.parametrize(("n_workers", "starts"), [(n, g) for n, found in GROUPS.items() for g in found])
@pytest.mark.parametrize("legs", [1, 2, 3])
@pytest.mark.parametrize("grain", [1, 3, 2**62])
def test_groups_draw_each_task_once_and_legs_in_order(n_workers, starts, legs, grain):
    """By a crowd of workers, and by one that is alone: it draws what all groups have."""
    rng = np.random.default_rng(n_workers)
    for n_relays, alone in product((0, 1, 2, 5, 16), (False, True)):
        split = groups.Split(1, n_relays * legs, grain, legs)
        counters, seen = np.zeros(tasks.n_counters(n_workers, 2), np.int64), []
        asking = dict.fromkeys([n_workers - 1] if alone else range(n_workers), not starts)  # whether they help
        while asking:
            worker = int(rng.choice(list(asking)))
            here = draw_in_groups(counters, worker, n_workers, split, starts, asking[worker])
            seen += here
            if not here and asking.pop(worker) is False:
                asking[worker] = True
        assert sorted(seen) == list(range(split.n))
        for begin, end in pairwise(starts or [0, n_workers]) if legs > 1 else ():
            row = range(n_relays * begin // n_workers, n_relays * end // n_workers)
            of_row = [task for task in seen if task % n_relays in row]
            assert of_row == sorted(of_row)


def test_a_group_draws_its_own_tasks_first_and_then_those_of_the_next():
    legs, whole = groups.Split(0, 10, 1, 2), groups.Split(0, 10, 1, 1)
    for split, near, first in (
        (legs, [[0], [2], [1], [3], [4], [5], [6], []], [7]),  # relays 0, 1 and 2, 3, 4
        (whole, [[0], [6], [2], [8], [4], [1], [3], []], [5]),
    ):
        counters = np.zeros(tasks.n_counters(5), np.int64)
        asking = (0, 3, 1, 4, 2, 0, 0, 0)
        assert [draw_in_groups(counters, worker, 5, split, [0, 2, 5], False) for worker in asking] == near
        rest = [draw_in_groups(counters, 0, 5, split, [0, 2, 5], True) for _ in range(4)]
        assert rest[0] == first
        assert sorted(task for here in near + rest for task in here) == list(range(10))
        assert rest[-1] == []


def test_who_waits_before_helping_looks_only_for_a_while():
    counters = np.zeros(tasks.n_counters(2), np.int64)
    assert not tasks.is_done_soon(counters, 0, 2, 3)
    tasks.finish(counters, 0, 2, 3)
    assert tasks.is_done_soon(counters, 0, 2, 3)


def test_a_leg_waits_for_the_one_before_and_the_last_leaves_nothing():
    n_relays, n_tasks = 2, 6
    counters = np.zeros(tasks.n_counters(2) + relays.n_leg_counters(n_relays), np.int64)
    relays.wait_for_leg(counters, n_relays, 1)  # a first leg waits for none
    waiting = threading.Thread(target=relays.wait_for_leg, args=(counters, n_relays, 3), daemon=True)
    waiting.start()
    relays.finish_leg(counters, n_relays, n_tasks, 0)  # of the other relay
    waiting.join(0.05)
    assert waiting.is_alive()
    relays.finish_leg(counters, n_relays, n_tasks, 1)
    waiting.join(10)
    assert not waiting.is_alive()
    for task in range(2, n_tasks):
        relays.wait_for_leg(counters, n_relays, task)
        relays.finish_leg(counters, n_relays, n_tasks, task)
    assert not counters.any()


@pytest.mark.parametrize("n_workers", [1, 2, 3, 7])
@pytest.mark.parametrize("grain", [1, 2, 5])
def test_tasks_are_drawn_once_each_whoever_asks(n_workers, grain):
    rng = np.random.default_rng(grain)
    for n_tasks in (0, 1, 2, 6, 7, 8, 40):
        counters = np.zeros(tasks.n_counters(n_workers, 2), np.int64)
        seen = []
        asking = list(range(n_workers))
        while asking:
            worker = int(rng.choice(asking))
            first, end = tasks.draw(counters, 1, worker, n_workers, n_tasks, grain)
            assert end - first <= grain
            seen += range(first, end)
            if first == end:
                asking.remove(worker)
        assert sorted(seen) == list(range(n_tasks))


def test_a_worker_begins_with_its_own_range():
    counters = np.zeros(tasks.n_counters(2), np.int64)
    assert [tasks.draw(counters, 0, w, 2, 10, 1)[0] for w in (1, 1, 0)] == [5, 6, 0]


@pytest.mark.parametrize("grain", [7, 2**62, 2**63 - 1, 0, -1])
def test_counters_do_not_wrap_whatever_the_grain(grain):
    counters = np.zeros(tasks.n_counters(2), np.int64)
    seen = [tasks.draw(counters, 0, i % 2, 2, 7, grain) for i in range(40)]
    assert sorted(task for first, end in seen for task in range(first, end)) == list(range(7))
    assert 0 <= counters.min() <= counters.max() <= 40 * 7


ROWS = BlockOrder("[KR][NR]", lambda nr, kr, r, j: r * nr + j)
FLIPPED = replace(ROWS, flips=(-128, 0, -1, 5))


def packed_by_formula(w, kr, n_parts, order):
    """[batch][panel][part][part_kp / kr][NR * kr] of w (batch, k, n), padded by zeros."""
    batch, k, n = w.shape
    part_k = k // n_parts
    steps, n_panels = ceil_div(part_k, kr), ceil_div(n, NR)
    out = np.zeros((batch, n_panels, n_parts, steps, NR * kr), w.dtype)
    for i, p, j in np.ndindex(w.shape):
        part, q = divmod(p, part_k)
        out[i, j // NR, part, q // kr, order.place(NR, kr, q % kr, j % NR)] = w[i, p, j]
    for r, flip in enumerate(order.flips):
        out[..., [order.place(NR, kr, r, j) for j in range(NR)]] ^= np.int8(flip)
    return out.reshape(-1)


@pytest.mark.parametrize("dtype", [np.int8, np.uint16])
@pytest.mark.parametrize(("batch", "k", "n", "n_parts"), [(1, 6, NR, 2), (3, 5, NR + 1, 1), (2, 10, 2 * NR - 1, 2)])
def test_panels_are_packed_by_the_formula(dtype, batch, k, n, n_parts):
    rng = np.random.default_rng(0)
    w = rng.integers(-100 if dtype == np.int8 else 0, 100, (batch, k, n)).astype(dtype)
    columns = rng.permutation(n)
    orders = [(1, BY_COLUMN), (2, BY_COLUMN), (2, BY_COLUMN_REVERSED), (4, BY_COLUMN), (4, ROWS)]
    if dtype == np.int8:
        orders += [(4, FLIPPED)]
    for kr, order in orders:
        want = packed_by_formula(w[:, :, columns], kr, n_parts, order)
        isa = replace(ISA, int8_order=order, kr_int8=kr)
        places, flips = isa.places(is_int8=True), isa.flips(is_int8=True)
        for n_threads in (1, 2):
            got = np.full(len(want), 111, dtype)
            source = panels.Matrices(w.reshape(-1), k, columns, k * n, n)
            share = panels.Share(n_threads, batch * ceil_div(n, NR), 1, 0)
            panels.pack_panels(n_threads, n_threads, share, source, panels.Order(kr, n_parts, places, flips), got)
            assert (got == want).all()


@pytest.mark.parametrize("n_parts", [1, 2])
@pytest.mark.parametrize("k", [1, 2, 5, 33, 64])
def test_a_row_becomes_an_operand(k, n_parts):
    """bf16: the parts of k padded to KR, in pairs odd k first where the microkernel takes pairs."""
    x = np.arange(1, n_parts * k + 1, dtype=np.float32).astype(ml_dtypes.bfloat16)
    part = round_up(k, KR_BF16)
    out = np.full(n_parts * part, 99, A_BF16_DTYPE)
    operand.bf16_operand_row(x.view(np.uint16), n_parts, out)
    got = out.view(ml_dtypes.bfloat16) if out.dtype == np.uint16 else out
    if out.dtype == np.uint16:
        got = got.reshape(-1, 2)[:, ::-1].reshape(-1)
    want = np.zeros((n_parts, part), np.float32)
    want[:, :k] = x.astype(np.float32).reshape(n_parts, k)
    assert got.astype(np.float32).tolist() == want.reshape(-1).tolist()


def test_codes_become_an_operand():
    row = np.full(8 + A_BEGIN, 99, A_INT8_DTYPE)
    operand.int8_operand_row(np.array([-128, -1, 0, 127], np.int8), row, 8)
    if A_BEGIN:
        assert row.tolist() == [-128, 0, -1 + 256 * 128 - 128, 127 - 128, 0, 0, -128, -128, 128 * 128, 0]
    else:
        assert (row.astype(np.int64) - int(A_OFFSET)).tolist() == [-128, -1, 0, 127, 0, 0, 0, 0]


@numba.njit
def multiply_codes(codes, row, kp, packed, sums):
    """A row of codes, as an operand, times one panel."""
    operand.int8_operand_row(codes, row, kp)
    ukernel(1, kp, A(row, 0, len(row)), B(packed, 0, 0, 0, IN_L1), C(sums, 0, False), True)


def test_every_pair_of_codes_is_multiplied_exactly():
    """All pairs of a row's codes, by all codes of a weight, at an even and an odd k and with k padded."""
    rng = np.random.default_rng(0)
    first, second = np.meshgrid(np.arange(-128, 128), np.arange(-128, 128))
    pairs = np.stack([first, second], axis=-1).reshape(-1).astype(np.int8)
    for codes in (pairs, np.roll(pairs, 1), pairs[: 2 * 256 * 10 + 1]):
        k = len(codes)
        weight = rng.integers(-128, 128, (k, NR)).astype(np.int8)
        weight[:, :3] = (-128, 127, 0)
        gemm = packed_gemm.pack_gemm([weight], [np.ones(NR, np.float32)], 1)
        row = np.full(gemm.kp + 2 + A_BEGIN, 99, A_INT8_DTYPE)
        sums = np.empty(NR, np.int32)
        multiply_codes(codes, row, gemm.kp, gemm.panels, sums)
        assert (sums + gemm.offset == codes.astype(np.int32) @ weight.astype(np.int32)).all()


def test_who_waits_goes_on_when_all_tasks_are_done_and_not_before():
    counters = np.zeros(tasks.n_counters(2, 3), np.int64)
    waiting = threading.Thread(target=tasks.wait_for, args=(counters, 1, 2, 5), daemon=True)
    tasks.finish(counters, 1, 2, 3)
    tasks.finish(counters, 0, 2, 2)  # of another phase
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    tasks.finish(counters, 1, 2, 2)
    waiting.join(60)
    assert not waiting.is_alive()
    tasks.wait_for(counters, 2, 2, 0)  # of nothing
