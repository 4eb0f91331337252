"""Estimators of memory and speed that need no GPU: formula, trace with simulation of the allocator, roofline."""
