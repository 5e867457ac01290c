"""The microkernels as one small library of machine code, which every kernel calls into.

Numba optimises what a function calls again with each caller of it, and with each caller of that one. The microkernels,
thousands of instructions that are never inlined, would be optimised six times over so; here they are compiled once, and
a kernel's own code knows their names only.
"""

from __future__ import annotations

import time
from hashlib import sha256
from pathlib import Path
from typing import Any

from numba.core import config
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

from ..jit.folder import load_object, lock_to_write, save_object, say_compiling, say_damaged, say_ready, trusted_folder
from ..jit.fork import check_process
from .assembly import define_microkernels
from .table import ISA

__all__ = ["load_microkernels"]

_held: list[Any] = []  # the library, which has to live as long as any kernel


def load_microkernels() -> None:
    """Makes the microkernels known to Numba: from the cache or, the first time on a machine, by compiling them."""
    if config.DISABLE_JIT or ISA.name == "portable":
        return
    with global_compiler_lock:
        if not _held:
            check_process()
            _held.append(_load_or_build())


def _load_or_build() -> Any:
    codegen = cpu_target.target_context.codegen()
    folder = trusted_folder()
    if folder is None:
        return _build(codegen)
    target = sha256(repr(codegen.magic_tuple()).encode()).hexdigest()[:16]
    path = folder / f"microkernels-{ISA.name}-{target}.pickle"
    library = _load(codegen, path)
    if library is not None:
        say_ready("microkernels")
        return library
    lock = lock_to_write(path.with_suffix(".lock"))
    if lock is None:
        return _build(codegen)
    try:
        library = _load(codegen, path)
        if library is None:
            say_compiling()
            begin = time.perf_counter()
            library = _build(codegen)
            save_object(path, library.serialize_using_object_code())
            say_ready("microkernels", time.perf_counter() - begin)
    finally:
        lock.release()
    return library


def _build(codegen: Any) -> Any:
    library = codegen.create_library("mla_numba.microkernels")
    library.enable_object_caching()
    module = library.create_ir_module("mla_numba.microkernels")
    define_microkernels(module, ISA)
    library.add_ir_module(module)
    library.finalize()
    return library


def _load(codegen: Any, path: Path) -> Any:
    """The library of a file, None where there is none or one that cannot be loaded."""
    state = load_object(path)
    try:
        return None if state is None else codegen.unserialize_library(state)
    except Exception as error:
        say_damaged(path, error)
        return None
