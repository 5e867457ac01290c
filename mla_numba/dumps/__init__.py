"""Folders of dumped arguments of the reference operator: read, checked against the oracle, written."""

from .folder import FORMATS, Dump, DumpedOutput, DumpSettings, check_dump, dump_settings, read_dump, write_dump

__all__ = [
    "FORMATS",
    "Dump",
    "DumpSettings",
    "DumpedOutput",
    "check_dump",
    "dump_settings",
    "read_dump",
    "write_dump",
]
