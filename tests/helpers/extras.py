"""Marks of tests that need a package of an extra."""

from importlib.util import find_spec

import pytest

needs_optuna = pytest.mark.skipif(not find_spec("optuna"), reason="the extra `tune` is not installed")
