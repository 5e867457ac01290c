"""`python -m mla_numba` and the script `mla-numba`: the same command."""

import sys

__all__ = ["main"]


def main() -> None:
    """Runs the command; Ctrl-C while its modules are loaded ends it as it does later."""
    try:
        from .cli.main import main as command

        command()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
