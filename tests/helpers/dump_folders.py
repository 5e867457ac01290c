"""Small folders of dumped arguments."""

import numpy as np

from mla_numba import MlaDims
from mla_numba.dumps import DumpSettings, write_dump

from .calls import BF16

DIMS = MlaDims(70, 3, 50, 64, 18, 32)  # no weight fills its fractals
T = 5
SMALL = DumpSettings(dims=DIMS, block_size=4)


def folder_of(tmp_path, mode="b", settings=SMALL, **how):
    quant, _, smooth = mode.partition(" ")
    write_dump(tmp_path / "dump", T, quant, settings=settings, smooth=bool(smooth), **how)
    return tmp_path / "dump"


def rewrite(folder, name, change):
    """Saves what `change` makes of an array under the same name."""
    np.save(folder / f"{name}.npy", change(np.load(folder / f"{name}.npy")))


def as_bf16(array):
    return array.view(BF16)
