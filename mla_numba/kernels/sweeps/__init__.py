"""The three sweeps over a tile of tokens."""
