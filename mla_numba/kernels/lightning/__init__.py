"""The lightning index: scores of all keys that a token sees, and the best of them."""
