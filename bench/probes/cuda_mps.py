"""Whether CUDA's Multi-Process Service (MPS) serves this process: not to be confused with Apple's devices of that name.

A process uses it where its control daemon answers when CUDA starts: kernels of several processes then run at one time,
in a context that the daemon's server holds (Multi-Process Service, "Architecture").
"""

from __future__ import annotations

import ctypes
import sys

_MPS_ENABLED = 133  # cuda.h: CU_DEVICE_ATTRIBUTE_MPS_ENABLED, contexts on this device are shared via MPS


def mps_state(index: int) -> tuple[bool | None, str | None]:
    """The CUDA driver's word, or None and why there is none.

    Args:
        index: CUDA's number of the device. CUDA must have started in this process.
    """
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
        get, ask = driver.cuDeviceGet, driver.cuDeviceGetAttribute
    except (OSError, AttributeError):
        return None, "there is no CUDA driver to ask"
    device, enabled = ctypes.c_int(), ctypes.c_int()
    code = get(ctypes.byref(device), index) or ask(ctypes.byref(enabled), _MPS_ENABLED, device)
    if code:  # 1, invalid value, of drivers that do not know the attribute
        return None, f"the CUDA driver does not tell (CUresult {code})"
    return bool(enabled.value), None
