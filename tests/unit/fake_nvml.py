"""A stand-in for the `pynvml` module: boards as dictionaries, everything absent answers `not supported`."""

from __future__ import annotations

import ctypes
import sys
import threading
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import pynvml
import pytest

NOT_SUPPORTED, NOT_FOUND, DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND, GPU_IS_LOST, VERSION_MISMATCH = 3, 6, 9, 12, 15, 18
FUNCTION_NOT_FOUND = 13
FIELDS = "nvmlDeviceGetFieldValues"
UUID = "GPU-11111111-2222-3333-4444-555555555555"
OTHER_UUID = "GPU-99999999-2222-3333-4444-555555555555"


@dataclass(frozen=True)
class Fault:
    """An answer of a board that is an NVML error."""

    code: int


def a100(**changes: Any) -> dict[str, Any]:
    """A board under load: what each query answers, by the name of its function."""
    return {
        "nvmlDeviceGetUUID": UUID,
        "nvmlDeviceGetName": "NVIDIA A100-SXM4-80GB",
        "nvmlDeviceGetCudaComputeCapability": (8, 0),
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=80 << 30, used=3 << 30, free=77 << 30),
        "nvmlDeviceGetMigMode": [0, 0],
        "nvmlDeviceGetEccMode": [1, 1],
        "nvmlDeviceGetPersistenceMode": 1,
        "nvmlDeviceGetVbiosVersion": "92.00.45.00.03",
        "nvmlDeviceGetEnforcedPowerLimit": 300_000,
        "nvmlDeviceGetPowerManagementDefaultLimit": 400_000,
        "nvmlDeviceGetMaxClockInfo": 1410,
        "nvmlDeviceGetClockInfo": 1200,
        "nvmlDeviceGetTemperature": 61,
        "nvmlDeviceGetPowerUsage": 287_500,
        "nvmlDeviceGetTotalEnergyConsumption": 5_000_000,
        "nvmlDeviceGetCurrentClocksEventReasons": 0x4,
        "nvmlDeviceGetViolationStatus": SimpleNamespace(referenceTime=1, violationTime=2_500_000_000),
        "nvmlDeviceGetCurrPcieLinkGeneration": 4,
        "nvmlDeviceGetCurrPcieLinkWidth": 16,
        "nvmlDeviceGetComputeRunningProcesses": [],
        "nvmlDeviceIsMigDeviceHandle": 0,
        **changes,
    }


class FakeNvml(ModuleType):
    """Answers from `boards`.

    `start_error` makes `nvmlInit` fail, `hang` makes the named function block for ever, `absent` are names that the
    binding lacks, and `driver` is its version. A board answers `nvmlDeviceGetFieldValues` with a dictionary: a number,
    of an unsigned 64-bit integer, by the number of its field. For a function that fills a structure, it has the
    values of that structure's members, in a dictionary.
    """

    def __init__(self, *boards: dict[str, Any], slices: tuple[dict[str, Any], ...] = (), **faults: Any) -> None:
        super().__init__("pynvml")
        self.boards, self.slices = boards, slices
        self.start_error: int | None = faults.get("start_error")
        self.hang: str = faults.get("hang", "")
        self.absent: tuple[str, ...] = faults.get("absent", ())
        self.driver: str = faults.get("driver", "550.54.15")
        self.calls: list[str] = []
        self.released = threading.Event()

        class NVMLError(Exception):
            def __init__(self, value: int) -> None:
                self.value = value
                super().__init__(f"NVML error {value}")

        self.NVMLError = NVMLError

    def __getattr__(self, name: str) -> Any:
        if name in self.absent:
            raise AttributeError(name)
        if name.startswith("c_nvml"):
            return getattr(pynvml, name)
        if not name.startswith("nvml"):
            raise AttributeError(name)
        return lambda *arguments: self._answer(name, *arguments)

    def _answer(self, name: str, *arguments: Any) -> Any:
        self.calls.append(name)
        if name == self.hang:
            self.released.wait(60)
        if name == "nvmlInit" and self.start_error:
            self._fail(self.start_error)
        general = {
            "nvmlInit": None,
            "nvmlShutdown": None,
            "nvmlSystemGetDriverVersion": self.driver,
            "nvmlSystemGetCudaDriverVersion_v2": 12040,
            "nvmlDeviceGetCount": len(self.boards),
        }
        if name in general:
            return general[name]
        if name == "nvmlDeviceGetHandleByIndex":
            return self.boards[arguments[0]]
        if name == "nvmlDeviceGetHandleByUUID":
            found = [board for board in (*self.boards, *self.slices) if board["nvmlDeviceGetUUID"] == arguments[0]]
            return found[0] if found else self._fail(NOT_FOUND)
        if name == "nvmlDeviceGetMigDeviceHandleByIndex":
            return self.slices[arguments[1]] if arguments[1] < len(self.slices) else self._fail(NOT_FOUND)
        if name == "nvmlDeviceGetDeviceHandleFromMigDeviceHandle":
            return self.boards[0]
        board = self.boards[0] if name.startswith("nvmlSystem") else arguments[0]
        answer = board.get(name, Fault(NOT_SUPPORTED))
        return self._fail(answer.code) if isinstance(answer, Fault) else _shaped(name, answer, arguments)

    def _fail(self, code: int) -> Any:
        raise self.NVMLError(code)


def _shaped(name: str, answer: Any, arguments: tuple[Any, ...]) -> Any:
    """An answer as the binding gives it."""
    if name == FIELDS:
        return [_field(number, answer.get(number, Fault(NOT_SUPPORTED))) for number in arguments[1]]
    if not isinstance(answer, dict):
        return answer
    for member, value in answer.items():
        setattr(arguments[-1]._obj, member, value)
    return 0


def _field(number: int, answer: int | Fault) -> Any:
    """As the driver fills it, in a union of all types."""
    filled = pynvml.c_nvmlFieldValue_t(fieldId=number)
    if isinstance(answer, Fault):
        filled.nvmlReturn = answer.code
    else:
        filled.valueType, filled.value.ullVal = pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, answer
    return filled


def mask(*bits: int) -> Any:
    """A set of workload power profiles, as NVML has it."""
    words = [sum(1 << bit % 32 for bit in bits if bit // 32 == place) for place in range(8)]
    return pynvml.c_nvmlMask255_t((ctypes.c_uint * 8)(*words))


def install(monkeypatch: pytest.MonkeyPatch, fake: FakeNvml) -> FakeNvml:
    """Make `import pynvml` give the fake."""
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return fake
