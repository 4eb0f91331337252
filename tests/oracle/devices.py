"""The devices that the stub driver can play."""

from __future__ import annotations

DEVICES: dict[str, dict[str, int | str]] = {
    "h200": {
        "name": "NVIDIA H200",
        "multiprocessors": 132,
        "capability_major": 9,
        "capability_minor": 0,
        "memory_bytes": 150_754_820_096,
        "threads_per_multiprocessor": 2048,
        "shared_optin_bytes": 232_448,
        "l2_bytes": 62_914_560,
    },
    "a100-40gb": {
        "name": "NVIDIA A100-SXM4-40GB",
        "multiprocessors": 108,
        "capability_major": 8,
        "capability_minor": 0,
        "memory_bytes": 42_297_786_368,
        "threads_per_multiprocessor": 2048,
        "shared_optin_bytes": 166_912,
        "l2_bytes": 41_943_040,
    },
    "a100-80gb": {
        "name": "NVIDIA A100-SXM4-80GB",
        "multiprocessors": 108,
        "capability_major": 8,
        "capability_minor": 0,
        "memory_bytes": 85_094_825_984,
        "threads_per_multiprocessor": 2048,
        "shared_optin_bytes": 166_912,
        "l2_bytes": 41_943_040,
    },
    "rtx3090": {
        "name": "NVIDIA GeForce RTX 3090",
        "multiprocessors": 82,
        "capability_major": 8,
        "capability_minor": 6,
        "memory_bytes": 25_438_126_080,
        "threads_per_multiprocessor": 1536,
        "shared_optin_bytes": 101_376,
        "l2_bytes": 6_291_456,
    },
}
"""What `cudaDeviceProp` reports; total memory where no recording gave it is what such cards commonly report."""
