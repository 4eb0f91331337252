"""Ground truth for estimates: unmodified torch on a CUDA device that does not exist, and what it says of memory."""
