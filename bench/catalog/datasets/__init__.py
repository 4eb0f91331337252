"""Data sets: one file per entry or family, each defining ENTRIES."""
