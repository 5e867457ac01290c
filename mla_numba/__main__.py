"""`python -m mla_numba` and the script `mla-numba`: the same command."""

import sys
from contextlib import suppress

__all__ = ["main"]


def main() -> None:
    """Runs the command; Ctrl-C while its modules are loaded ends it as it does later."""
    try:
        if "--mpi" in sys.argv:
            _begin_mpi()
        from .cli.main import main as command

        command()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        _end_the_job(130)
        sys.exit(130)
    except BaseException as error:
        _end_the_job(error)
        raise


def _begin_mpi() -> None:
    """Begins MPI before anything can fail: of a rank that ends before that, MPICH tells the others nothing."""
    with suppress(ImportError, RuntimeError):  # the command says later what is missing
        from mpi4py import MPI  # noqa: F401


def _end_the_job(status: BaseException | int) -> None:
    """Ends all ranks where this one ends with an error, as `python -m mpi4py` does; nothing where MPI has not begun."""
    if "mpi4py.MPI" in sys.modules:
        from mpi4py.run import set_abort_status

        set_abort_status(status)


if __name__ == "__main__":
    main()
