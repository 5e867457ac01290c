"""A machine that is described, not measured: nodes of sockets of cores, what they reach, and links between them."""

import math
from dataclasses import dataclass, replace

from tiling.arith import ceil_div
from tiling.check import MAX_THREADS, check_choice, check_int, check_rate
from tiling.choose.costs import Costs
from tiling.json import JsonText
from tiling.machine import ISA_NAMES, Machine
from tiling.modes import IsaName

__all__ = ["Cluster", "LinkRate", "Placement"]

_MAX_RANKS = 2**16


@dataclass(frozen=True)
class LinkRate(JsonText):
    """A link between two ranks. ``Cluster`` has an example.

    Args:
        latency_s: Seconds until a small message has arrived.
        bytes_s: Bytes a second that arrive at one rank that nobody shares the link with.
    """

    latency_s: float
    bytes_s: float

    def __post_init__(self) -> None:
        """Check the fields."""
        check_rate("latency_s", self.latency_s)
        check_rate("bytes_s", self.bytes_s)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where ranks are: on as few nodes as they fit on, spread evenly over each node's sockets.

    Args:
        n_nodes: Nodes that have a rank.
        ranks_a_node: Ranks on the fullest of them.
        ranks_a_socket: Ranks on its fullest socket.
        sockets_a_rank: Sockets whose cores one rank has.
    """

    n_nodes: int
    ranks_a_node: int
    ranks_a_socket: int
    sockets_a_rank: int


@dataclass(frozen=True)
class Cluster(JsonText):
    """Nodes of sockets of cores, to plan for and to predict times of.

    - ``name, arch, isa``: as of ``Machine``.
    - ``n_sockets, n_cores``: sockets of a node, cores of a socket.
    - ``l1d_bytes, l2_bytes``: of a core; ``l3_bytes``: of a socket.
    - ``memory_bytes_s``: bytes a second that the cores of a socket read together from its memory, ``core_bytes_s``: one
      core.
    - ``bf16_flops_s, int8_ops_s``: operations a second of one core; a multiply-add counts as two.
    - ``socket_link, node_link``: between ranks of one node, and of different nodes.
    - ``launch_s``: seconds to wake a rank's threads. By default what was measured for the instruction set, with two
      threads.

    Raises:
        TypeError: A field is of another type.
        ValueError: A field has another value.

    Examples:
        >>> from tiling import Cluster, LinkRate
        >>> link = {"latency_s": 1e-6, "bytes_s": 1e10}
        >>> sizes = {"l1d_bytes": 48 << 10, "l2_bytes": 1 << 20, "l3_bytes": 32 << 20}
        >>> rates = {"memory_bytes_s": 3e11, "core_bytes_s": 3e10, "bf16_flops_s": 2e11, "int8_ops_s": 8e11}
        >>> links = {"socket_link": LinkRate(**link), "node_link": LinkRate(**link)}
        >>> cluster = Cluster("two sockets", "x86_64", "avx512vnni", n_sockets=2, n_cores=64, **sizes, **rates, **links)
        >>> cluster.place(3, n_threads=64)
        Placement(n_nodes=2, ranks_a_node=2, ranks_a_socket=1, sockets_a_rank=1)
    """

    name: str
    arch: str
    isa: IsaName
    n_sockets: int
    n_cores: int
    l1d_bytes: int
    l2_bytes: int
    l3_bytes: int
    memory_bytes_s: float
    core_bytes_s: float
    bf16_flops_s: float
    int8_ops_s: float
    socket_link: LinkRate
    node_link: LinkRate
    launch_s: float | None = None

    def __post_init__(self) -> None:
        """Check the fields; those that ``Machine`` has by making one."""
        check_choice("isa", self.isa, ISA_NAMES)
        check_int("n_sockets", self.n_sockets, 1, MAX_THREADS)
        check_int("n_cores", self.n_cores, 1, MAX_THREADS // self.n_sockets)
        for name in ("memory_bytes_s", "core_bytes_s", "bf16_flops_s", "int8_ops_s"):
            check_rate(name, getattr(self, name))
        if self.launch_s is not None:
            check_rate("launch_s", self.launch_s)
        for name in ("socket_link", "node_link"):
            if not isinstance(getattr(self, name), LinkRate):
                raise TypeError(f"{name}: expected LinkRate, got {type(getattr(self, name)).__name__}")
        self.machine(1)

    def machine(self, n_threads: int) -> Machine:
        """The machine that a rank of so many threads plans for.

        Args:
            n_threads: Its threads, a core each.

        Returns:
            A node, of which it may use so many cores, on as many sockets as have them.

        Raises:
            TypeError: ``n_threads`` is no int.
            ValueError: A node has fewer cores.
        """
        n_cores = self.n_sockets * self.n_cores
        check_int("n_threads", n_threads, 1, n_cores)
        n_sockets = ceil_div(n_threads, self.n_cores)
        nodes = (self.n_cores,) * n_sockets if n_sockets > 1 else ()
        sizes = self.l1d_bytes, self.l2_bytes, self.l3_bytes
        return Machine(self.name, self.arch, self.isa, *sizes, n_cores, n_threads, nodes)

    def place(self, size: int, n_threads: int) -> Placement:
        """Where ranks are.

        Args:
            size: How many there are.
            n_threads: Threads of each.

        Returns:
            Their placement.

        Raises:
            TypeError: An argument is no int.
            ValueError: It is out of range, or a node has fewer cores than a rank has threads.
        """
        check_int("size", size, 1, _MAX_RANKS)
        check_int("n_threads", n_threads, 1, self.n_sockets * self.n_cores)
        sockets_a_rank = ceil_div(n_threads, self.n_cores)
        most = self.n_sockets * (self.n_cores // n_threads) if sockets_a_rank == 1 else self.n_sockets // sockets_a_rank
        ranks_a_node = min(size, most)
        ranks_a_socket = ceil_div(ranks_a_node, self.n_sockets) if sockets_a_rank == 1 else 1
        return Placement(ceil_div(size, most), ranks_a_node, ranks_a_socket, sockets_a_rank)

    def costs(self, size: int, n_threads: int) -> Costs:
        """The constants of the model for one of some ranks, which share the memory of their socket evenly.

        Args:
            size: How many ranks there are.
            n_threads: Threads of each.

        Returns:
            The constants of the instruction set with the rates of this machine.

        Raises:
            TypeError: As ``place``.
            ValueError: As ``place``.
        """
        place, costs = self.place(size, n_threads), Costs.of_isa(self.isa)
        return replace(
            costs,
            memory_bytes_s=self.memory_bytes_s * place.sockets_a_rank / place.ranks_a_socket,
            core_bytes_s=self.core_bytes_s,
            bf16_flops_s=self.bf16_flops_s,
            int8_ops_s=self.int8_ops_s,
            launch_s=costs.launch_s if self.launch_s is None else self.launch_s,
        )

    def gather_link(self, size: int, n_threads: int) -> LinkRate:
        """What an all-gather costs: seconds to begin with, and bytes a second that arrive at each rank.

        It takes as many steps as the number of ranks has binary digits, each of one latency. The ranks of a node share
        its link to the others evenly.

        Args:
            size: How many ranks there are, at least 2.
            n_threads: Threads of each.

        Returns:
            The latency of all steps, and a rank's share of the slower link that is needed.

        Raises:
            TypeError: As ``place``.
            ValueError: As ``place``; or there is one rank only.
        """
        check_int("size", size, 2, _MAX_RANKS)
        place = self.place(size, n_threads)
        n_steps = math.ceil(math.log2(size))
        if place.n_nodes == 1:
            return LinkRate(n_steps * self.socket_link.latency_s, self.socket_link.bytes_s)
        return LinkRate(n_steps * self.node_link.latency_s, self.node_link.bytes_s / place.ranks_a_node)

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.name} ({self.arch}, {self.isa}): nodes of {self.n_sockets} x {self.n_cores} cores, "
            f"{self.memory_bytes_s / 1e9:.0f} GB/s a socket; a core {self.core_bytes_s / 1e9:.0f} GB/s, "
            f"{self.bf16_flops_s / 1e9:.0f} GFLOP/s, {self.int8_ops_s / 1e9:.0f} GOP/s"
        )
