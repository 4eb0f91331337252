"""Optimizers: one file an entry or family, each defining ENTRIES."""
