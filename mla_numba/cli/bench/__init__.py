"""`mla-numba bench`: the suite run, and its results as a page."""
