"""The prolog of a layer that several processes share by heads, over MPI or a process group of PyTorch."""

from .agreement import OtherRankError
from .communicator import Communicator
from .prediction import Prediction, predict
from .sharded import ShardedProlog
from .sharded_plan import ShardedPlan, ShardedTimes

__all__ = ["Communicator", "OtherRankError", "Prediction", "ShardedPlan", "ShardedProlog", "ShardedTimes", "predict"]
