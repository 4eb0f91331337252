"""NVML calls that cannot hang the caller: one daemon thread makes them all, and every wait for it is bounded.

A driver in trouble (a GPU off the bus, a reset under way) blocks inside `nvmlInit` or a query without end, and a C call
cannot be interrupted from Python. The thread that is stuck is abandoned: it is a daemon, so the process still exits,
and the session answers every later call with `NvmlUnavailable` at once instead of waiting again.

Open a session in the process that uses it, never before a fork: neither NVML's state nor the thread survives one.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import os
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

from bench.errors import DeviceError

Answer = TypeVar("Answer")

TIMEOUT_VARIABLE = "BENCH_NVML_TIMEOUT"
DEFAULT_TIMEOUT_S = 30.0
"""An `nvmlInit` without persistence mode initialises every GPU, which takes 1 to 3 s per card, on up to 16 cards."""

MOST_S = 3600.0
NO_ANSWER = "NVML gave no answer"
"""So begins what is said of a driver that hangs; of one that answers with an error, the error is."""

NO_DRIVER_CODES = (9, 12)
"""NVML_ERROR_DRIVER_NOT_LOADED and NVML_ERROR_LIBRARY_NOT_FOUND (nvml.h, `nvmlReturn_enum`): no GPU to speak of."""

NOT_IN_BINDING = "nvidia-ml-py has no such query"
NOT_IN_DRIVER = "the driver has no such query"
_NOT_ON_GPU = "not supported by this GPU or driver"
_UNSUPPORTED_CODES = {
    2: _NOT_ON_GPU,  # invalid argument
    3: _NOT_ON_GPU,
    4: "no permission to ask",
    6: _NOT_ON_GPU,  # not found
    13: NOT_IN_DRIVER,
    25: NOT_IN_DRIVER,  # another version of the structure
    26: NOT_IN_DRIVER,  # deprecated, and gone
}
"""Answers that mean "not on this board, driver or account" (nvml.h, `nvmlReturn_enum`), in words. Everything else is a
fault and is kept in `last_error`."""

_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
"""Of the union that a field's value is in, by its type (nvml.h, `nvmlValueType_t`)."""


class NvmlUnavailable(Exception):  # noqa: N818 - reads as the state it reports
    """NVML gives no answer; `absent` is true if there is no driver, or no `nvidia-ml-py`, to ask."""

    def __init__(self, reason: str, *, absent: bool = False) -> None:
        """Keep the reason, one line for people."""
        self.absent = absent
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Way:
    """One of several ways to ask for the same reading of a device.

    Attributes:
        ask: The name of a function, or the number of a field value (nvml.h, `NVML_FI_*`).
        arguments: Of the function, behind the device.
        member: Of the structure that it answers with; empty where the answer is the number.
        scale: What makes the number one of the reading's unit.
    """

    ask: str | int
    arguments: tuple[int, ...] = ()
    member: str = ""
    scale: float = 1.0


class NvmlSession:
    """An initialised NVML. `call` runs a function on the session's thread; `read` is for use inside such a function."""

    def __init__(self, timeout_s: float | None = None) -> None:
        """Load and initialise NVML.

        Args:
            timeout_s: The longest wait for any one call, in seconds; what `BENCH_NVML_TIMEOUT` says, or 30, where None.

        Raises:
            NvmlUnavailable: No driver, no `nvidia-ml-py`, an error of the driver, or no answer in time.
            DeviceError: The variable holds no number of seconds.
        """
        self.timeout_s = _timeout_s() if timeout_s is None else timeout_s
        self.last_error: str | None = None
        self._hung_in: str | None = None
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue[Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="nvml", daemon=True).start()
        try:
            self._pynvml = self.call(_initialise, "nvmlInit")
        except NvmlUnavailable:
            self._jobs.put(None)
            raise

    def call(self, function: Callable[[], Answer], what: str = "query") -> Answer:
        """Run `function` on the session's thread and return what it returns, or raise what it raises.

        Raises:
            NvmlUnavailable: No answer within `timeout_s`, now or in an earlier call.
        """
        if self._hung_in:
            raise NvmlUnavailable(f"{NO_ANSWER} to {self._hung_in}; it is not queried again")
        reply: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._jobs.put((function, reply))
        try:
            answer, error = reply.get(timeout=self.timeout_s)
        except queue.Empty:
            self._hung_in = what
            raise NvmlUnavailable(f"{NO_ANSWER} to {what} within {self.timeout_s:g} s") from None
        if error is not None:
            raise error
        return answer  # type: ignore[no-any-return]

    def read(self, name: str, *arguments: Any) -> Any:
        """The answer of one NVML function, or None where board, driver, account or `nvidia-ml-py` lack it.

        Errors beyond that (a GPU that is lost, a reset that is needed) give None as well and stand in `last_error`.
        """
        return self.ask(name, *arguments)[0]

    def ask(self, name: str, *arguments: Any) -> tuple[Any, str | None]:
        """As `read`, with the reason in a few words where there is no answer."""
        function = getattr(self._pynvml, name, None)
        if function is None:
            return None, NOT_IN_BINDING
        try:
            return function(*arguments), None
        except self._pynvml.NVMLError as error:
            return None, self._refusal(name, error)
        except getattr(self._pynvml, "NVMLLibraryMismatchError", ()):
            return None, NOT_IN_DRIVER  # the binding knows a newer structure than the driver

    def fill(self, name: str, structure: str, *arguments: Any) -> tuple[Any, str | None]:
        """As `ask`, of a function that fills a structure of `nvidia-ml-py` that it is handed last."""
        kind = getattr(self._pynvml, structure, None)
        if kind is None:
            return None, NOT_IN_BINDING
        filled = kind()
        code, why = self.ask(name, *arguments, ctypes.byref(filled))
        if code:  # some functions of the binding raise, others return what NVML did
            why = self._refusal(name, self._pynvml.NVMLError(code))
        return (filled if why is None else None), why

    def ask_field(self, device: Any, field: int) -> tuple[float | None, str | None]:
        """As `ask`, for one field value: a number in NVML's unit, which has a return code and a type of its own."""
        values, why = self.ask("nvmlDeviceGetFieldValues", device, [field])
        if values is None:
            return None, why
        (value,) = values
        if value.nvmlReturn:
            return None, self._refusal(f"field {field}", self._pynvml.NVMLError(value.nvmlReturn))
        member = _MEMBERS[value.valueType] if value.valueType < len(_MEMBERS) else ""
        number = getattr(value.value, member, None)
        return number, None if number is not None else f"a value of type {value.valueType}, which is not known here"

    def first(self, device: Any, ways: Sequence[Way]) -> float | None:
        """The reading by the first way that gives one, in the reading's unit; None where none does."""
        for way in ways:
            if isinstance(way.ask, int):
                answer: Any = self.ask_field(device, way.ask)[0]
            else:
                answer = self.read(way.ask, device, *way.arguments)
            if answer is not None:
                return float((getattr(answer, way.member) if way.member else answer) * way.scale)
        return None

    def _refusal(self, name: str, error: Exception) -> str:
        code = getattr(error, "value", None)
        if code not in _UNSUPPORTED_CODES:
            self.last_error = f"{name}: {error}"
        return _UNSUPPORTED_CODES.get(code, str(error)) if isinstance(code, int) else str(error)

    def close(self) -> None:
        """Shut NVML down, without waiting longer than the bound."""
        if not self._hung_in:
            try:
                self.call(lambda: self.read("nvmlShutdown"), "nvmlShutdown")
            except NvmlUnavailable as error:
                self.last_error = str(error)
        self._jobs.put(None)

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            function, reply = job
            try:
                reply.put((function(), None))
            except BaseException as error:  # noqa: BLE001 - handed to the caller, who raises it
                reply.put((None, error))


def _timeout_s() -> float:
    given = os.environ.get(TIMEOUT_VARIABLE, "")
    try:
        seconds = float(given or DEFAULT_TIMEOUT_S)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MOST_S:
        raise DeviceError(
            f'{TIMEOUT_VARIABLE}: "{given[:40]}" must be a number of seconds above 0 and up to {MOST_S:g}, such as 30'
        )
    return seconds


def _initialise() -> ModuleType:
    try:
        pynvml = importlib.import_module("pynvml")
    except ImportError as error:
        raise NvmlUnavailable(f"nvidia-ml-py is not installed ({error})", absent=True) from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        absent = getattr(error, "value", None) in NO_DRIVER_CODES
        raise NvmlUnavailable(f"NVML does not start: {error}", absent=absent) from error
    return pynvml
