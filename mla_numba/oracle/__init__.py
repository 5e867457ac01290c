"""What is right: the NumPy reference, and how outputs are compared with it."""
