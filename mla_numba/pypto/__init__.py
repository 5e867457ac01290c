"""The reference operator's own names: entry points, projections and single operations on NumPy arrays."""
