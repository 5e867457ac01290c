"""Weights: as they come, quantised, packed for the kernels, in files and checkpoints."""

from .attention import CheckpointLayer
from .checkpoint import Checkpoint
from .packed import PackedWeights
from .plain import MlaWeights
from .quantize import QuantizationReport, WeightError

__all__ = ["Checkpoint", "CheckpointLayer", "MlaWeights", "PackedWeights", "QuantizationReport", "WeightError"]
