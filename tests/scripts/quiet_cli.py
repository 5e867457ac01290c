"""The command `mla-numba` on a machine where others take nothing, whatever they do."""

from helpers.quiet import QUIET

from mla_numba.cli.main import main

if __name__ == "__main__":
    for owner, name, value in QUIET:
        setattr(owner, name, value)
    main()
