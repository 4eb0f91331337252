"""Estimators of memory and speed that need no GPU: formula, trace with the allocator's replay, roofline."""
