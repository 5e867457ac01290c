"""Attention of few queries over latent keys that lie in a paged cache."""
