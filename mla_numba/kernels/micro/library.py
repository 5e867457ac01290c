"""Vector code as small libraries of machine code, which kernels call into: the microkernels, and others like them.

Numba optimises what a function calls again with each caller of it, and with each caller of that one. The microkernels,
thousands of instructions that are never inlined, would be optimised six times over so; here they are compiled once, and
a kernel's own code knows their names only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from llvmlite import ir
from numba.core import config
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

from ..isa import Isa
from ..jit.folder import load_object, lock_to_write, save_object, say_compiling, say_damaged, say_ready, trusted_folder
from ..jit.fork import check_process
from .assembly import define_microkernels
from .table import ISA

__all__ = ["MICROKERNELS", "Library", "load_microkernels"]


class Library:
    """Functions that `define(module, isa)` defines in a module of LLVM; the portable instruction set has none."""

    def __init__(self, name: str, define: Callable[[ir.Module, Isa], None]) -> None:
        self.name = name
        self._define = define
        self._held: Any = None  # has to live as long as any kernel

    def load(self) -> None:
        """Makes the functions known to Numba: from the cache or, the first time on a machine, by compiling them."""
        if self._held is not None or config.DISABLE_JIT or ISA.name == "portable":
            return
        with global_compiler_lock:
            if self._held is None:
                check_process()
                self._held = self._load_or_build()

    def build(self, codegen: Any) -> Any:
        """Compiles the functions."""
        library = codegen.create_library(f"mla_numba.{self.name}")
        library.enable_object_caching()
        module = library.create_ir_module(f"mla_numba.{self.name}")
        self._define(module, ISA)
        library.add_ir_module(module)
        library.finalize()
        return library

    def _load_or_build(self) -> Any:
        codegen = cpu_target.target_context.codegen()
        folder = trusted_folder()
        if folder is None:
            return self.build(codegen)
        target = sha256(repr(codegen.magic_tuple()).encode()).hexdigest()[:16]
        path = folder / f"{self.name}-{ISA.name}-{target}.pickle"
        library = self._load(codegen, path)
        if library is not None:
            say_ready(self.name)
            return library
        lock = lock_to_write(path.with_suffix(".lock"))
        if lock is None:
            return self.build(codegen)
        try:
            library = self._load(codegen, path)
            if library is None:
                say_compiling()
                begin = time.perf_counter()
                library = self.build(codegen)
                save_object(path, library.serialize_using_object_code())
                say_ready(self.name, time.perf_counter() - begin)
        finally:
            lock.release()
        return library

    def _load(self, codegen: Any, path: Path) -> Any:
        """The library of a file, None where there is none or one that cannot be loaded."""
        state = load_object(path)
        try:
            return None if state is None else codegen.unserialize_library(state)
        except Exception as error:
            say_damaged(path, error)
            return None


MICROKERNELS = Library("microkernels", define_microkernels)
load_microkernels = MICROKERNELS.load
