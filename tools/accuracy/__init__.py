"""The figures of docs/accuracy.md, out of one command: `python -m tools.accuracy` (or `nox -s accuracy`).

Each module with a `SECTION` holds one part of the page: what it asks, in child processes that import torch, and how it
writes what it found. What a child found is kept under `.accuracy/`, keyed by versions and code, so that a repeated run
costs seconds. The same versions and the same seed give the same page, to the byte.
"""
