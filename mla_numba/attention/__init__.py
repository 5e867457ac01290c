"""What consumes the prolog's outputs and reads its caches: the choice of keys, and attention over them."""
