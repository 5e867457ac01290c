"""What a CPU has, by LLVM's names of features: this one, and any that Numba is told to compile for."""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Iterable

from llvmlite import binding as llvm

__all__ = ["host_features", "named_features"]

# AArch64: the word of Linux' auxiliary vector that says whether the CPU has a feature, and the bit in it.
_AT_HWCAP, _AT_HWCAP2 = 16, 26
_HWCAPS = {
    "neon": (_AT_HWCAP, 1),
    "dotprod": (_AT_HWCAP, 20),
    "i8mm": (_AT_HWCAP2, 13),
    "bf16": (_AT_HWCAP2, 14),
}


def host_features() -> frozenset[str]:
    """What this CPU has."""
    llvm.initialize_native_target()
    known = llvm.get_host_cpu_features()
    found = {name for name, present in known.items() if present}
    if platform.machine().lower() not in ("aarch64", "arm64") or sys.maxsize < 2**32:
        found -= _HWCAPS.keys()  # 32-bit Arm has features of these names too, and other instructions
    elif sys.platform == "linux":
        found -= _HWCAPS.keys()
        found |= {name for name, (word, bit) in _HWCAPS.items() if _auxiliary(word) >> bit & 1}
    else:  # LLVM lists only some of them there; it knows the others by the name of the CPU
        found |= named_features(llvm.get_host_cpu_name(), "", _HWCAPS.keys() - known.keys())
    return frozenset(found)


def _auxiliary(word: int) -> int:
    getauxval = ctypes.CDLL(None).getauxval
    getauxval.argtypes, getauxval.restype = [ctypes.c_ulong], ctypes.c_ulong
    return int(getauxval(word))


def named_features(cpu_name: str, cpu_features: str, wanted: Iterable[str], triple: str = "") -> frozenset[str]:
    """Those of the `wanted` features that LLVM may use when it compiles for a CPU of that name.

    `cpu_features` adds to the name's own and takes from them ("+avx2,-fma"), with all that this implies. A name that
    LLVM does not know has none of its own. `triple` is the kind of machine, this process's by default.

    LLVM has no list of them to ask for. But it inlines a function into another only if the caller may use everything
    that the callee may. So each feature is that of a small function, and those that are inlined tell.
    """
    triple, names = triple or llvm.get_process_triple(), sorted(wanted)
    needed = ["+64bit"] if triple.startswith("x86_64") else []  # without it a name that is not known ends the process
    base = [*needed, *(word.strip() for word in cpu_features.split(",") if word.strip())]
    lines = [f'target triple = "{triple}"', "@seen = global i32 0"]
    for i, name in enumerate(names):
        lines.append(f"define internal void @feature_{i}() #{i} {{ store volatile i32 {i}, ptr @seen ret void }}")
        lines.append(f'attributes #{i} = {{ "target-features"="{",".join([*base, f"+{name}"])}" }}')
    calls = " ".join(f"call void @feature_{i}()" for i in range(len(names)))
    lines.append(f"define void @caller() {{ {calls} ret void }}")
    target = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu_name, features=",".join(base))
    module = llvm.parse_assembly("\n".join(lines))
    builder = llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(speed_level=2))
    builder.getModulePassManager().run(module, builder)
    left = {function.name for function in module.functions}
    return frozenset(name for i, name in enumerate(names) if f"feature_{i}" not in left)
