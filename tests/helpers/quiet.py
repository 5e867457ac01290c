"""What makes a machine quiet for the commands, whatever others do: attributes to be set."""

from mla_numba.tuning.conditions import Conditions, Load

QUIET = (
    (Conditions, "reasons", property(lambda self: [])),
    (Load, "disturbs", lambda self, n_threads: False),
)
