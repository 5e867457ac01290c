"""The command `mla-numba sweep`: a study of plans, timed against the planner's own."""
