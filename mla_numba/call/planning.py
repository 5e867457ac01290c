"""The plans of a prolog on this machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from tiling import (
    PRESETS,
    Costs,
    CpuTiling,
    Machine,
    MicroTile,
    MlaTileConfig,
    PassOptions,
    PrologPlan,
    pass_options,
    plan_prolog,
)
from tiling.modes import ISA_NAMES, Dtype

from .._version import __version__
from ..base.checks import check_choice
from ..base.dims import MlaDims
from ..base.indexer_dims import IndexerDims
from ..base.modes import CALL_PHASES, CallPhase, QuantMode
from ..kernels import ISA, Isa
from .tuned import load_rates, load_tuned

__all__ = ["MICRO_TILES", "PlanSettings", "Plans", "micro_tiles", "stored_choice", "this_machine"]

_PLANS_KEPT = 64
_CONFIGS = "MlaTileConfig, CpuTiling, 'auto' or None"


def micro_tiles(isa: Isa) -> dict[Dtype, MicroTile]:
    """The register tiles of an instruction set, as the planner takes them."""
    return {
        "bf16": MicroTile(
            mr=isa.mr,
            nr=isa.nr,
            kr=isa.kr_bf16,
            a_bytes=isa.a_bf16_bytes,
            two_panels=isa.bf16.two_panels if isa.bf16 else 0,
        ),
        "int8": MicroTile(
            mr=isa.mr,
            nr=isa.nr,
            kr=isa.kr_int8,
            a_bytes=isa.a_int8_bytes,
            two_panels=isa.int8.two_panels if isa.int8 else 0,
            a_begin=isa.a_int8_begin,
        ),
    }


MICRO_TILES = micro_tiles(ISA)


def this_machine() -> Machine:
    """This machine, with the instruction set that the kernels are built for."""
    return replace(Machine.detect(), isa=check_choice("isa", ISA.name, ISA_NAMES))


def stored_choice(
    machine: Machine, dims: MlaDims, quant: QuantMode, n_threads: int, t: int
) -> tuple[CpuTiling | None, Costs | None, str]:
    """What "auto" plans `t` tokens with: the tuned tiling, or None for the planner to choose; the model's constants
    with the rates measured on this machine, or None where they were not; and what to say of it.
    """
    rates = load_rates(machine, __version__, n_threads)
    costs = None if rates is None else Costs.of_isa(machine.isa).with_rates(rates, n_threads)
    found = load_tuned(machine, __version__, dims, quant, n_threads, t) if t else None
    if found is None:
        return None, costs, "nothing is stored for so many tokens, so the planner chose (mla-numba tune searches)"
    return found.tiling if found.tiling.given() else None, costs, str(found)


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """What a user says of a prolog's plans: the arguments of `MlaProlog` of these names.

    Raises `TypeError` or `ValueError` naming the field that does not fit.
    """

    phase: CallPhase
    tile_config: MlaTileConfig | CpuTiling | Literal["auto"] | None
    options: PassOptions | None

    def __post_init__(self) -> None:
        config, options = self.tile_config, self.options
        check_choice("phase", self.phase, CALL_PHASES)
        if isinstance(config, str) and config != "auto":
            hint = f" (an MlaTileConfig: preset({config!r}))" if config in PRESETS else ""
            raise ValueError(f"tile_config: expected {_CONFIGS}, got {config!r}{hint}")
        if config is not None and not isinstance(config, (MlaTileConfig, CpuTiling, str)):
            raise TypeError(f"tile_config: expected {_CONFIGS}, got {type(config).__name__}")
        if options is not None and not isinstance(options, PassOptions):
            raise TypeError(f"options: expected PassOptions or None, got {type(options).__name__}")
        if options is not None and isinstance(config, (CpuTiling, str)):
            raise ValueError("options: expected None with a CpuTiling or 'auto', got PassOptions")
        if isinstance(config, MlaTileConfig):  # a copy, since the caller can still change theirs
            object.__setattr__(self, "tile_config", config.replace())


class Plans:
    """The plans of one prolog, each made once."""

    def __init__(
        self, dims: MlaDims, quant: QuantMode, settings: PlanSettings, indexer: IndexerDims | None = None
    ) -> None:
        self.machine = this_machine()
        self._dims = dims
        self._quant = quant
        self._settings = settings
        self._indexer = indexer
        self._made: dict[tuple[int, int], PrologPlan] = {}

    def plan(self, t: int, n_threads: int) -> PrologPlan:
        """The plan of `t` tokens on that many threads."""
        # No lru_cache of a bound method, a cycle that would keep the weights until the garbage collector finds it.
        plan = self._made.get((t, n_threads))
        if plan is None:
            if len(self._made) >= _PLANS_KEPT:
                self._made.clear()
            plan = self._made[t, n_threads] = self._make(t, n_threads)
        return plan

    def _make(self, t: int, n_threads: int) -> PrologPlan:
        phase, config, options = self._settings.phase, self._settings.tile_config, self._settings.options
        if options is None and isinstance(config, MlaTileConfig):
            options = pass_options(phase, t)
        costs, note = None, ""
        if isinstance(config, str):
            config, costs, note = stored_choice(self.machine, self._dims, self._quant, n_threads, t)
        return plan_prolog(
            self._dims, t, config, self.machine, micro=MICRO_TILES, phase=phase, quant=self._quant,
            n_threads=n_threads, options=options, costs=costs, note=note, indexer=self._indexer,
        )  # fmt: skip
