"""The planner's candidates: blocks that a sweep may have, which are refused and why, and the modelled time of each.

A plan's sweeps run one after the other, so each has candidates of its own; within the heads sweep the blocks of either
product are chosen apart, for each token block. Fields that a ``CpuTiling`` gives are the only candidates there.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product

from tiling.arith import ceil_div, round_up
from tiling.choose.costs import Costs
from tiling.choose.legs import longest_leg, useful_legs
from tiling.choose.model import Cost, Model, ProductCost
from tiling.cpu_tiling import CpuTiling
from tiling.gemm import ITEM_BYTES, MicroTile
from tiling.machine import Machine
from tiling.modes import Dtype
from tiling.stages import StageShape

__all__ = ["Choice", "Chooser", "SweepCandidate"]

_ROW_BLOCKS = (1, 2, 3, 4, 6, 8, 16)
_K_BLOCKS = (1, 2, 3, 4, 6, 8, 14, 20)
_WALKS = (1, 2, 3, 4, 8, 16)
_GRAINS = (1, 2, 4, 8)
_ROWS = (1, 2, 4, 8, 16, 32)
_MIN_KC = 64

IDLE = "idle_threads: fewer tasks than threads"
C_BEYOND_L2 = "accumulators_beyond_l2: a task's accumulators take more than L2"
WALK_BEYOND_L2 = "walk_beyond_l2: a walk's panels, and those that are fetched meanwhile, take more than half of L2"
WALK_BEYOND = "walk_beyond_panels: the product has fewer panels"
MC_BEYOND = "row_block_beyond_task: more rows than the task has"

Values = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class SweepCandidate:
    """Blocks of one sweep by the names of ``CpuTiling``: with their modelled cost, or with a reason against."""

    sweep: str
    values: Values
    cost: Cost | None
    refused: str = ""

    def __str__(self) -> str:
        """The blocks on one line."""
        return " ".join(f"{name.partition('_')[2] if self.sweep == 'down' else name} {v}" for name, v in self.values)


@dataclass(frozen=True)
class Choice:
    """What was chosen for a tile, by the names of ``CpuTiling``, and the modelled seconds of its sweeps."""

    values: Mapping[str, int]
    down: Cost
    heads: Cost
    rows_s: float

    @property
    def seconds(self) -> float:
        """Modelled seconds of the tile."""
        return self.down.seconds + self.heads.seconds + self.rows_s


@dataclass(frozen=True)
class Chooser:
    """Chooses among the candidates for one tile of ``t`` tokens by ``n_workers`` threads."""

    shapes: tuple[StageShape, StageShape, StageShape, StageShape]
    micro: Mapping[Dtype, MicroTile]
    machine: Machine
    costs: Costs
    t: int
    n_workers: int
    given: CpuTiling

    @cached_property
    def _model(self) -> Model:
        return Model(self.machine, self.costs, self.n_workers)

    def _axis(self, name: str, values: Iterable[int]) -> list[int]:
        prescribed = getattr(self.given, name)
        return list(dict.fromkeys(values)) if prescribed is None else [prescribed]

    def _row_axis(self, name: str) -> list[int]:
        mr = self.micro[self.shapes[0].dtype].mr
        wanted = [ceil_div(self.t, n) for n in _ROW_BLOCKS]
        return [min(mc, self.t) for mc in self._axis(name, [mc for mc in wanted if mc >= mr] or [self.t])]

    def _k_axis(self, name: str, part: int, micro: MicroTile) -> list[int]:
        wanted = [round_up(ceil_div(part, n), micro.kr) for n in _K_BLOCKS]
        axis = self._axis(name, [kc for kc in wanted if kc >= _MIN_KC] or wanted[:1])
        return [min(round_up(kc, micro.kr), round_up(part, micro.kr)) for kc in axis]

    def _walk_axis(self, name: str, n_panels: int) -> list[int]:
        walks = sorted({*_WALKS, n_panels}) if n_panels < _WALKS[-1] else _WALKS  # all panels in one walk, if not many
        return [min(walk, n_panels) if getattr(self.given, name) else walk for walk in self._axis(name, walks)]

    def _legs_axis(self, name: str, n_relays: int, most: int) -> list[int]:
        return [min(legs, most) for legs in self._axis(name, useful_legs(n_relays, self.n_workers, most))]

    def _down_legs_axis(self, n_relays: int) -> list[int]:
        shape = self.shapes[0]
        n_steps = shape.k_parts * ceil_div(shape.k // shape.k_parts, self.micro[shape.dtype].kr)
        return self._legs_axis("down_legs", n_relays, n_steps)

    def _heads_legs_axis(self, mc: int) -> list[int]:
        qb = self.shapes[1]
        n_panels = ceil_div(qb.n, self.micro[qb.dtype].nr)
        return self._legs_axis("heads_legs", qb.batch * ceil_div(self.t, mc), n_panels + 1)

    def _refused(self, shape: StageShape, n_panels: int, rows: int, kc: int, walk: int, own: str) -> str:
        """Why a task cannot have these blocks of a product, empty if it can; ``own``: the sweep's own reason."""
        nr = self.micro[shape.dtype].nr
        if walk > n_panels:
            return WALK_BEYOND
        if own:
            return own
        if shape.k_parts * rows * walk * nr * 4 > self.machine.l2_bytes:
            return C_BEYOND_L2
        if walk > 1 and 2 * walk * kc * nr * ITEM_BYTES[shape.dtype] > self.machine.l2_bytes // 2:
            return WALK_BEYOND_L2
        return ""

    def _down(self) -> Iterator[tuple[Values, str]]:
        qa, _, kva, _ = self.shapes
        micro = self.micro[qa.dtype]
        n_qa, n_kva = ceil_div(qa.n, micro.nr), ceil_div(kva.n, micro.nr)
        walks = self._walk_axis("down_walk", max(n_qa, n_kva))
        for mc in self._row_axis("down_mc"):
            n_blocks = ceil_div(self.t, mc)
            rows = ceil_div(self.t, n_blocks)
            for kc in self._k_axis("down_kc", qa.k // qa.k_parts, micro):
                for walk in walks:
                    n_relays = (ceil_div(n_qa, walk) + ceil_div(n_kva, walk)) * n_blocks
                    own = IDLE if n_relays < self.n_workers else ""
                    refused = self._refused(qa, max(n_qa, n_kva), rows, kc, walk, own)
                    for legs in self._down_legs_axis(n_relays):
                        yield (("down_mc", mc), ("down_kc", kc), ("down_walk", walk), ("down_legs", legs)), refused

    def down_cost(self, values: Values, grain: int = 1) -> Cost:
        """The modelled cost of blocks of the down sweep. Waking the threads, once a tile, is part of it."""
        (_, mc), (_, kc), (_, walk), (_, legs) = values
        qa, _, kva, _ = self.shapes
        micro = self.micro[qa.dtype]
        n_blocks = ceil_div(self.t, mc)
        products = [self._model.product(shape, micro, self.t / n_blocks, n_blocks, kc, walk) for shape in (qa, kva)]
        n_relays = sum(ceil_div(ceil_div(shape.n, micro.nr), walk) for shape in (qa, kva)) * n_blocks
        if legs > 1:
            # Each panel is begun anew in each leg.
            n_panels = sum(ceil_div(shape.n, micro.nr) for shape in (qa, kva)) * n_blocks
            products.append(self._model.handing_on((legs - 1) * n_panels, (legs - 1) * self.t * (qa.n + kva.n) * 4))
        n_bytes = sum(_weight_bytes(shape, micro) for shape in (qa, kva)) + 2 * self.t * qa.k
        cost = self._model.sweep(products, n_bytes, self.t * (qa.n + kva.n), n_relays * legs, grain)
        return cost._replace(seconds=cost.seconds + self._model.launch_s)

    def _up(self, mc: int) -> Iterator[tuple[Values, str]]:
        qb = self.shapes[1]
        micro = self.micro[qb.dtype]
        n_panels = ceil_div(qb.n, micro.nr)
        n_blocks = ceil_div(self.t, mc)
        rows = ceil_div(self.t, n_blocks)
        own = IDLE if qb.batch * n_blocks < self.n_workers <= qb.batch * self.t else ""
        for kc in self._k_axis("qb_kc", qb.k, micro):
            for walk in self._walk_axis("qb_walk", n_panels):
                refused = self._refused(qb, n_panels, rows, kc, walk, own)
                yield (("qb_kc", kc), ("qb_walk", walk)), refused

    def _uk(self, mc: int) -> Iterator[tuple[Values, str]]:
        wuk = self.shapes[3]
        micro = self.micro[wuk.dtype]
        n_panels = ceil_div(wuk.n, micro.nr)
        rows = ceil_div(self.t, ceil_div(self.t, mc))
        inner = self._axis("wuk_mc", [*(n * micro.mr for n in (1, 2, 4, 8)), rows])
        for mc_uk in [min(m, rows) for m in inner] if self.given.wuk_mc else inner:
            for kc in self._axis("wuk_kc", [round_up(wuk.k, micro.kr)]):
                for walk in self._walk_axis("wuk_walk", n_panels):
                    own = MC_BEYOND if mc_uk > rows else ""
                    refused = self._refused(wuk, n_panels, mc_uk, kc, walk, own)
                    yield (("wuk_mc", mc_uk), ("wuk_kc", min(round_up(kc, micro.kr), round_up(wuk.k, micro.kr))),
                           ("wuk_walk", walk)), refused  # fmt: skip

    def up_cost(self, mc: int, values: Values) -> ProductCost:
        """The modelled work of the query's up projection in token blocks of ``mc`` rows."""
        (_, kc), (_, walk) = values
        n_blocks = ceil_div(self.t, mc)
        qb = self.shapes[1]
        return self._model.product(qb, self.micro[qb.dtype], self.t / n_blocks, n_blocks, kc, walk)

    def uk_cost(self, mc: int, values: Values) -> ProductCost:
        """The modelled work of the product with w_uk in token blocks of ``mc`` rows."""
        (_, mc_uk), (_, kc), (_, walk) = values
        rows = self.t / ceil_div(self.t, mc)
        n_blocks = ceil_div(self.t, mc) * ceil_div(int(rows + 0.999), mc_uk)
        wuk = self.shapes[3]
        micro = self.micro[wuk.dtype]
        in_l1 = mc_uk * round_up(wuk.k, micro.kr) * micro.a_bytes <= self.machine.l1d_bytes // 2
        return self._model.product(wuk, micro, self.t / n_blocks, n_blocks, kc, walk, in_l1)

    def heads_cost(self, mc: int, up: ProductCost, uk: ProductCost, grain: int = 1, legs: int = 1) -> Cost:
        """The modelled cost of blocks of the heads sweep."""
        qb, wuk = self.shapes[1], self.shapes[3]
        up_bytes, uk_bytes = (_weight_bytes(shape, self.micro[shape.dtype]) for shape in (qb, wuk))
        n_elements = self.t * qb.batch * qb.n
        queries = self.t * wuk.batch * (wuk.n + qb.n - wuk.k)
        n_relays = qb.batch * ceil_div(self.t, mc)
        products, longest = [up, uk], 1.0
        if legs > 1:
            n_panels = ceil_div(qb.n, self.micro[qb.dtype].nr)
            products.append(self._model.handing_on((legs - 1) * n_relays, n_elements * self.micro[wuk.dtype].a_bytes))
            longest = longest_leg(n_panels, n_panels * uk_bytes / up_bytes, legs)
        n_bytes = up_bytes + uk_bytes + 2 * queries
        return self._model.sweep(products, n_bytes, queries + n_elements, n_relays * legs, grain, longest)

    def choose(self) -> Choice:
        """The candidate of each sweep that is fastest by the model; of equal ones the first listed."""
        blocks = _first_legal(self._down(), lambda values: self.down_cost(values).seconds)
        down_grain = self._grain("down_grain", lambda grain: self.down_cost(blocks, grain).seconds)
        (qb_mc, up, uk, legs), works = self._choose_heads()
        heads_grain = self._grain("heads_grain", lambda grain: self.heads_cost(qb_mc, *works, grain, legs).seconds)
        rows_q, rows_k = min(self._rows(), key=lambda pair: self._model.rows(self.t, *pair))
        values = dict(blocks) | {"qb_mc": qb_mc} | dict(up) | dict(uk)
        values |= {"down_grain": down_grain, "heads_grain": heads_grain, "heads_legs": legs}
        values |= {"rows_q": rows_q, "rows_k": rows_k}
        return Choice(
            values,
            self.down_cost(blocks, down_grain),
            self.heads_cost(qb_mc, *works, heads_grain, legs),
            self._model.rows(self.t, rows_q, rows_k),
        )

    def _choose_heads(self) -> tuple[tuple[int, Values, Values, int], tuple[ProductCost, ProductCost]]:
        found: list[tuple[float, tuple[int, Values, Values, int], tuple[ProductCost, ProductCost]]] = []
        for mc in self._row_axis("qb_mc"):
            up = _first_legal(self._up(mc), partial(self._seconds, self.up_cost, mc))
            uk = _first_legal(self._uk(mc), partial(self._seconds, self.uk_cost, mc))
            works = self.up_cost(mc, up), self.uk_cost(mc, uk)
            for legs in self._heads_legs_axis(mc):
                found.append((self.heads_cost(mc, *works, legs=legs).seconds, (mc, up, uk, legs), works))
        _, blocks, works = min(found, key=lambda entry: entry[0])
        return blocks, works

    @staticmethod
    def _seconds(cost: Callable[[int, Values], ProductCost], mc: int, values: Values) -> float:
        return cost(mc, values).seconds

    def _grain(self, name: str, seconds: Callable[[int], float]) -> int:
        return min(self._axis(name, _GRAINS), key=seconds)

    def _rows(self) -> list[tuple[int, int]]:
        q, k = ([min(rows, self.t) for rows in self._axis(name, _ROWS)] for name in ("rows_q", "rows_k"))
        return list(product(q, k))

    def cost_of(self, candidate: SweepCandidate) -> Cost:
        """The modelled cost of any candidate of this tile."""
        if candidate.sweep == "down":
            return self.down_cost(candidate.values)
        (_, mc), *blocks, (_, legs) = candidate.values
        works = self.up_cost(mc, tuple(blocks[:2])), self.uk_cost(mc, tuple(blocks[2:]))
        return self.heads_cost(mc, *works, legs=legs)

    def listed(self) -> list[SweepCandidate]:
        """Every candidate of the down and the heads sweep: refused, or with the model's cost."""
        found = []
        for values, refused in self._down():
            found.append(SweepCandidate("down", values, None if refused else self.down_cost(values), refused))
        for mc in self._row_axis("qb_mc"):
            ups = [(v, refused, None if refused else self.up_cost(mc, v)) for v, refused in self._up(mc)]
            uks = [(v, refused, None if refused else self.uk_cost(mc, v)) for v, refused in self._uk(mc)]
            for (up, no_up, up_work), (uk, no_uk, uk_work), legs in product(ups, uks, self._heads_legs_axis(mc)):
                cost = None if up_work is None or uk_work is None else self.heads_cost(mc, up_work, uk_work, legs=legs)
                values = (("qb_mc", mc), *up, *uk, ("heads_legs", legs))
                found.append(SweepCandidate("heads", values, cost, no_up or no_uk))
        return found


def _weight_bytes(shape: StageShape, micro: MicroTile) -> int:
    return shape.batch * round_up(shape.k, micro.kr) * round_up(shape.n, micro.nr) * ITEM_BYTES[shape.dtype]


def _first_legal(candidates: Iterable[tuple[Values, str]], seconds: Callable[[Values], float]) -> Values:
    """The fastest of the candidates that are not refused, or of all if all are refused: there has to be a plan."""
    listed = list(candidates)
    legal = [values for values, refused in listed if not refused] or [values for values, _ in listed]
    return min(legal, key=seconds)
