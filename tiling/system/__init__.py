"""What the operating system says of this machine and of what this process may use of it."""
