"""The plans of a prolog, and how they are made."""
