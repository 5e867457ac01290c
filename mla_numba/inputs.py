"""Random inputs of a call; they live in `oracle`."""

from .oracle.inputs import Inputs, random_inputs

__all__ = ["Inputs", "random_inputs"]
