"""`python -m mla_numba` is the command `mla-numba`."""

from .cli.main import main

if __name__ == "__main__":
    main()
