"""How kernels are compiled, called by name and kept."""
