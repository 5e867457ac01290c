"""The closed lists of names that arguments choose from."""

__all__ = ["CALL_PHASES", "QUANT_MODES"]

# What is int8: nothing, the down projections (a), the query's up projection and the cache (b), or all of them.
QUANT_MODES = ("none", "a", "b", "ab")
# What a call is for; the reference operator pairs each with scheduling settings.
CALL_PHASES = ("decode", "prefill")
