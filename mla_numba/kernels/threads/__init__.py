"""How workers of a parallel region share tasks, and the atomic operations by which they do."""
