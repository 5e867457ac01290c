"""All microkernels of an instruction set, and their machine code for any CPU that LLVM knows, wherever this runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import binding as llvm
from llvmlite import ir

from ..isa import Isa
from ..llvm_ir import F32, I16
from .emitter import TileFunction

__all__ = ["Target", "define_microkernels"]


def define_microkernels(module: ir.Module, isa: Isa) -> None:
    """Defines in a module what `library` makes known to Numba; the portable instruction set has nothing of its own."""
    if isa.bf16 is None or isa.int8 is None:
        raise ValueError(f"isa: expected an instruction set with vector code, got {isa.name}")
    # Sums of int8 products, too, become float32 only where a bf16 product takes its A as float32.
    for store in (I16,) if isa.bf16_dot else (I16, F32):
        for kernel in (isa.bf16, isa.int8):
            TileFunction(isa, kernel, store).define(module)
            if kernel.two_panels:
                TileFunction(isa, kernel, store, panels=2).define(module)
    if isa.bf16_subnormal is not None:
        TileFunction(isa, isa.bf16_subnormal, I16).define(module, by_row=True)


class Target(NamedTuple):
    """A CPU to make code for, in LLVM's names: a triple, a CPU, and features as in "+avx2,-fma"."""

    triple: str
    cpu: str
    features: str = ""

    def assembly(self, isa: Isa) -> str:
        """The microkernels of an instruction set in the CPU's assembly language."""
        return self.assembly_of(lambda module: define_microkernels(module, isa))

    def assembly_of(self, define: Callable[[ir.Module], Any]) -> str:
        """What `define` puts into a module in the CPU's assembly language."""
        machine, module = self._compiled(define)
        text: str = machine.emit_assembly(module)
        return text

    def object_code(self, isa: Isa) -> bytes:
        """The same as an object file, to be linked for that CPU."""
        machine, module = self._compiled(lambda module: define_microkernels(module, isa))
        code: bytes = machine.emit_object(module)
        return code

    def _compiled(self, define: Callable[[ir.Module], Any]) -> tuple[llvm.TargetMachine, llvm.ModuleRef]:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        target = llvm.Target.from_triple(self.triple)
        machine = target.create_target_machine(cpu=self.cpu, features=self.features, opt=3, reloc="pic")
        module = ir.Module("mla_numba.microkernels")
        module.triple = self.triple
        module.data_layout = str(machine.target_data)
        define(module)
        compiled = llvm.parse_assembly(str(module))
        compiled.verify()
        passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
        passes.getModulePassManager().run(compiled, passes)
        return machine, compiled
