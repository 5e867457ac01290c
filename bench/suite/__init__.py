"""Benches that pytest runs, and what they share; `bench/conftest.py` has their options."""
