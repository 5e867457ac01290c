"""What each command takes and what its help says. Nothing that computes is imported before a command runs."""
