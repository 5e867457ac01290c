"""What every room of the library may use: checks, dimensions, memory, files."""
