"""The library from other frameworks. Each module needs its framework, and nothing in the library needs them."""
