"""NVML calls that cannot hang the caller: one daemon thread makes them all, and every wait for it is bounded.

A driver in trouble (a GPU off the bus, a reset under way) blocks inside `nvmlInit` or a query without end, and a C call
cannot be interrupted from Python. The thread that is stuck is abandoned: it is a daemon, so the process still exits,
and the session answers every later call with `NvmlUnavailable` at once instead of waiting again.

Open a session in the process that uses it, never before a fork: neither NVML's state nor the thread survives one.
"""

from __future__ import annotations

import importlib
import math
import os
import queue
import threading
from collections.abc import Callable
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

_UNSUPPORTED_CODES = (2, 3, 4, 6, 13, 25)
"""Answers that mean "not on this board, driver or account": invalid argument, not supported, no permission, not found,
function not found, argument version mismatch (nvml.h). Everything else is a fault and is kept in `last_error`."""


class NvmlUnavailable(Exception):  # noqa: N818 - reads as the state it reports
    """NVML gives no answer; `absent` is true if there is no driver, or no `nvidia-ml-py`, to ask."""

    def __init__(self, reason: str, *, absent: bool = False) -> None:
        """Keep the reason, one line for people."""
        self.absent = absent
        super().__init__(reason)


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
        function = getattr(self._pynvml, name, None)
        if function is None:
            return None
        try:
            return function(*arguments)
        except self._pynvml.NVMLError as error:
            if getattr(error, "value", None) not in _UNSUPPORTED_CODES:
                self.last_error = f"{name}: {error}"
            return None
        except getattr(self._pynvml, "NVMLLibraryMismatchError", ()):
            return None  # the binding knows a newer structure than the driver

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
