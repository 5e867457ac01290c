"""What `mla-numba tune` found, and what it keeps, as tables and sentences."""
