"""Learning on top of the kernels: dictionaries, and codes that improve from pass to pass."""
