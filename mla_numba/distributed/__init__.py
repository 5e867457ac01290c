"""The prolog of a layer that several processes share by heads, over MPI or a process group of PyTorch."""

from .agreement import OtherRankError
from .communicator import Communicator
from .sharded import ShardedProlog
from .sharded_plan import ShardedPlan, ShardedTimes

__all__ = ["Communicator", "OtherRankError", "ShardedPlan", "ShardedProlog", "ShardedTimes"]
