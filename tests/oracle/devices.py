"""The devices that the stub driver can play."""

from __future__ import annotations

import json
from collections.abc import Mapping

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
        "clock_khz": 1_980_000,
        "memory_clock_khz": 3_201_000,
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
        "clock_khz": 1_410_000,
        "memory_clock_khz": 1_215_000,
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
        "clock_khz": 1_410_000,
        "memory_clock_khz": 1_593_000,
    },
    "a100-1g.5gb": {
        "name": "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "multiprocessors": 14,
        "capability_major": 8,
        "capability_minor": 0,
        "memory_bytes": 5_100_273_664,
        "threads_per_multiprocessor": 2048,
        "shared_optin_bytes": 166_912,
        "l2_bytes": 5_242_880,
        "clock_khz": 1_410_000,
        "memory_clock_khz": 1_215_000,
    },
    "gb10": {
        "name": "NVIDIA GB10",
        "multiprocessors": 48,
        "capability_major": 12,
        "capability_minor": 1,
        "memory_bytes": 128_501_256_192,
        "threads_per_multiprocessor": 1536,
        "shared_optin_bytes": 101_376,
        "l2_bytes": 25_165_824,
        "clock_khz": 2_418_000,
        "memory_clock_khz": 0,
        "integrated": 1,
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
        "clock_khz": 1_695_000,
        "memory_clock_khz": 9_751_000,
    },
}
"""What `cudaDeviceProp` reports, and clocks for cuDNN; the H200's are recorded, the others' as commonly published.

The second A100 is a MIG slice; the GB10 takes host memory, and its total is the host's.
"""


def describe_to_cudnn(device: Mapping[str, int | str]) -> str:
    """The device in the JSON of cuDNN's device-property descriptor (cuDNN 9.8 and newer).

    The keys are those that cuDNN 9.26 asks for when it finalizes CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR.
    """
    is_consumer = device["capability_major"] == 8 and device["capability_minor"] != 0
    return json.dumps(
        {
            "version": 1,
            "deviceName": device["name"],
            "cudaDeviceId": 0,
            "deviceVer": 100 * int(device["capability_major"]) + 10 * int(device["capability_minor"]),
            "driverVer": device["cuda_version"],
            "multiProcessorCount": device["multiprocessors"],
            "smCountOrigin": 0,
            "maxGridSize": [2**31 - 1, 65535, 65535],
            "maxBlockSize": [1024, 1024, 64],
            "regsPerBlock": 65536,
            "warpSize": 32,
            "maxSharedMemoryPerBlock": 49152,
            "maxSharedMemoryPerBlockOptin": device["shared_optin_bytes"],
            "oversizedSharedMemoryPerBlock": 0,
            "reservedSharedMemoryPerBlock": 1024,
            "maxRegistersPerSM": 65536,
            "maxCtasPerSM": 16 if is_consumer else 32,
            "maxThreadsPerBlock": 1024,
            "maxThreadsPerSM": device["threads_per_multiprocessor"],
            "pciDeviceId": 0,
            "isTccDriver": 0,
            "supportCoopLaunch": 1,
            "smClockRateKHz": device["clock_khz"],
            "memClockRateKHz": device["memory_clock_khz"],
            "l2CacheSize": device["l2_bytes"],
            "totalGlobalMem": device["memory_bytes"],
        }
    )
