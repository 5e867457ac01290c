"""Sweep tiles, the same as `mla-numba sweep`: `python bench/sweep_tiles.py --tokens 8 --set down_kc=256:1024:256`."""

from mla_numba.cli.commands.sweep import sweep

if __name__ == "__main__":
    sweep()
