"""Importing this makes sure that `tiling` is the package that comes with this one, and no file of the same name.

A script's folder stands first on Python's path, so a `tiling.py` or a folder `tiling` beside it would be taken instead.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

__all__ = ["check_own_tiling"]

OWN = Path(__file__).parents[2] / "tiling"


def check_own_tiling() -> None:
    """Raises `ImportError` that names the file or folder which `import tiling` would take instead of ours.

    Nothing of it is run. Where ours does not lie beside this package, nothing is known and nothing said.
    """
    if not OWN.is_dir():
        return
    loaded = sys.modules.get("tiling")
    spec = find_spec("tiling") if loaded is None else getattr(loaded, "__spec__", None)
    if loaded is None and spec is None:
        return  # the import itself says so
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    if any(_same(folder) for folder in folders):
        return
    found = (
        (spec.origin if spec is not None else None) or next(iter(folders), None) or getattr(loaded, "__file__", None)
    )
    raise ImportError(
        f"tiling: expected the package that comes with mla_numba, {OWN}, got {found or 'none'}, which is in the way: "
        f"give it another name, or take its folder off Python's path",
        name="tiling",
        path=found,
    )


def _same(folder: str) -> bool:
    try:
        return OWN.samefile(folder)
    except OSError:
        return False


check_own_tiling()
