"""The command `mla-numba` on a machine where others take nothing, whatever they do."""

from mla_numba.cli.main import main
from mla_numba.tuning import conditions

conditions.Conditions.reasons = property(lambda self: [])
conditions.Load.disturbs = lambda self, n_threads: False

if __name__ == "__main__":
    main()
