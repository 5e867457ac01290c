"""The register tile: what a microkernel computes, and its code on each instruction set."""
