from hypothesis import settings

# The same examples on every machine, without a database of earlier failures and without a clock.
settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.load_profile("fixed")
