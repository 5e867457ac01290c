"""Keys are packed as any instruction set takes them: code of shuffles and xor alone, which runs on any CPU."""

import ctypes
from dataclasses import replace

import numpy as np
import pytest
from llvmlite import binding as llvm
from llvmlite import ir

from mla_numba.kernels import ISAS
from mla_numba.kernels.lightning.emitter import declare_pack, define_lightning
from mla_numba.kernels.lightning.heads import lags
from mla_numba.kernels.lightning.packing import RUN, define_pack
from mla_numba.kernels.micro.assembly import Target


def packed(isa, codes, places, n_runs, distance):
    """What `pack` makes of keys, compiled for this CPU."""
    module = ir.Module("pack")
    module.triple = llvm.get_process_triple()
    define_pack(isa, declare_pack(module, isa))
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(str(module)), machine)
    engine.finalize_object()
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 2, ctypes.c_void_p)
    panel = np.full(n_runs * RUN * isa.nr, 99, np.int8)
    addresses = [array.ctypes.data for array in (codes, places, panel)]
    function(engine.get_function_address(f"mla_numba_pack_keys_{isa.name}"))(
        *addresses[:2], n_runs, distance, addresses[2]
    )
    return panel


@pytest.mark.parametrize("n_runs", [1, 2, 3, 4])
@pytest.mark.parametrize("distance", [RUN, 50])
@pytest.mark.parametrize("name", [name for name, isa in ISAS.items() if isa.int8])
def test_the_order_of_packed_keys(name, distance, n_runs):
    isa = replace(ISAS[name].of_keys, tune="", features=frozenset())
    rng = np.random.default_rng(0)
    codes = rng.integers(-128, 128, 4000).astype(np.int8)
    places = rng.permutation(3000)[: isa.nr].astype(np.int64)
    got = packed(isa, codes, places, n_runs, distance)
    k = np.arange(n_runs * RUN)
    keys = codes[places[:, None] + k // RUN * distance + k % RUN]  # (NR, kp)
    order = isa.places(is_int8=True)
    want = np.empty_like(got)
    for p in k:
        flips = isa.flips(is_int8=True)[p % isa.kr_int8].astype(np.int8)
        want[p // isa.kr_int8 * isa.kr_int8 * isa.nr + order[p % isa.kr_int8]] = keys[:, p] ^ flips
    assert (got == want).all()


@pytest.mark.parametrize("name", [name for name, isa in ISAS.items() if isa.int8])
def test_what_is_flipped_in_a_key_is_its_surplus(name):
    """Read as the instructions do: bytes without sign, or the negated complement."""
    isa, codes = ISAS[name].of_keys, np.arange(-128, 128, dtype=np.int8)
    for flips, surplus in zip(isa.flips(is_int8=True), isa.surplus, strict=True):
        packed = codes ^ np.int8(flips)
        read = {0: packed, -128: packed.view(np.uint8), -1: -packed.astype(np.int32)}[int(flips)]
        assert (read == codes.astype(np.int32) + surplus).all()


@pytest.mark.parametrize("name", [name for name, isa in ISAS.items() if isa.int8])
def test_code_for_any_cpu_is_made_anywhere(name):
    isa = ISAS[name]
    target = Target("aarch64-linux-gnu", "generic") if "neon" in isa.features else Target("x86_64-linux-gnu", "x86-64")
    features = ",".join(f"+{feature}" for feature in sorted(isa.features))
    text = target._replace(features=features).assembly_of(lambda module: define_lightning(module, isa))
    for block in ("block",) if lags(isa) else range(1, isa.mr + 1):
        assert f"mla_numba_scores_{name}_{block}" in text
    assert (f"mla_numba_append_{name}" in text) == (isa.lanes == 16)
