"""One exception tree for everything that a user can mend, and the words it speaks in.

Every message says where, what was given, what is allowed, the nearest match and what to do next. The command line
prints the message and leaves with the class's `exit_code`; anything outside this tree is a fault of the harness and
keeps its traceback.
"""

from __future__ import annotations

import difflib
import re
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

EXIT_OK = 0
EXIT_FAILED_CASES = 1
EXIT_USAGE = 2
EXIT_REGRESSION = 3
EXIT_NOT_PUBLISHABLE = 4
EXIT_INTERRUPTED = 130


class BenchError(Exception):
    """A fault with a remedy; `str(error)` is the whole message."""

    exit_code = EXIT_USAGE


class UnknownNameError(BenchError):
    """A name that is not in a catalog."""

    def __init__(
        self,
        kind: str,
        given: str,
        allowed: Iterable[str],
        *,
        list_command: str | None = None,
        matches: Sequence[str] | None = None,
        remedy: str = "",
    ) -> None:
        """Build the message from the name given and those allowed.

        Args:
            kind: What was looked for, in the singular: `model`, `device`.
            given: The name as the user wrote it.
            allowed: Every name that would have been accepted.
            list_command: The command that lists them, without `bench`; `list KINDs` unless given.
            matches: The nearest names, where the caller knows better than their spelling.
            remedy: A further sentence on what to do, without a full stop.
        """
        self.kind, self.given = kind, given
        self.matches = nearest(given, allowed) if matches is None else list(matches)
        command = list_command or f"list {kind}s"
        listing = f"List them: bench {command}" + (f". {remedy}" if remedy else "")
        super().__init__(f'unknown {kind} "{given}". {nearest_sentence(self.matches)}{listing}')


class ConfigError(BenchError):
    """A configuration with faults; all of them are reported at once."""

    def __init__(self, faults: Sequence[str]) -> None:
        """Keep `faults`, one line each, already carrying their place."""
        self.faults = tuple(faults)
        super().__init__("\n".join(self.faults))


class DataError(BenchError):
    """A data set that cannot be read or fetched."""


class DeviceError(BenchError):
    """A device that is asked for, or shown by the driver, and cannot be used."""


class StoreError(BenchError):
    """Results that cannot be written or read."""


class BusyError(BenchError):
    """A device or a folder that another process holds."""


class InfrastructureError(BenchError):
    """Runs fail for causes outside the cases; the sweep stops rather than filling rows with noise."""

    exit_code = EXIT_FAILED_CASES


class Unsupported(BenchError):  # noqa: N818 - a verdict on a case, not a fault
    """A case that cannot run, with the reason; it becomes a row with the status `skipped`."""


class ReadsValues(Unsupported):
    """A step whose course depends on values of tensors that an estimator does not have."""

    def __init__(self, operator: str, place: str | None = None) -> None:
        """Say what reads.

        Args:
            operator: That asked for the values, as torch names it.
            place: The line of the user's code that called it; looked up among the callers unless given.
        """
        found = place or place_of(traceback.walk_stack(None))
        said = f"{operator} in {found}" if found else operator
        super().__init__(f"the step reads values from the device ({said}), so it cannot be traced without running it")


OPERATOR_NOTE = "operator "
"""How a note begins that an estimator puts on a foreign exception: the operator of torch under which it was raised."""

_MESSAGE_CHARACTERS = 500
_END_CHARACTERS = 8_000
"""Of a message at its beginning and at its end: what more there is says nothing new, and is searched by patterns."""

_FROM_WORKER = re.compile(r"Caught (\w+) (in [^\n]*)\.\nOriginal Traceback \(most recent call last\):\n")
"""How torch raises again what was raised in another process or thread (torch/_utils.py, `ExceptionWrapper`)."""


def describe_failure(error: BaseException) -> str:
    """An exception of somebody's code in one line: its type, the first line of its message, and where it was raised.

    `ValueError: not a size (model.py:12)`; the place is the innermost line of the model, the optimizer or their
    package, rather than of torch below them, and torch's operator stands beside it where that is known. Of an exception
    that came from a worker process, the line is the worker's own. Never empty: without a message there are type and
    place.
    """
    try:
        return _described(error)
    except BaseException:  # noqa: BLE001 - the class is somebody's too, and its attributes may do anything
        return "an exception that cannot be described"


def _described(error: BaseException) -> str:
    text, kind = message_of(error), type(error).__name__
    if wrapped := _FROM_WORKER.match(text):
        kind, where = wrapped[1], wrapped[2]
        said = re.findall(rf"^(?:[\w.]+\.)?{kind}(?:: (.*))?$", text, re.MULTILINE)
        line = said[-1] if said else text.splitlines()[-1]
    else:
        frames = list(traceback.walk_tb(error.__traceback__))
        operators = [note.removeprefix(OPERATOR_NOTE) for note in _notes(error) if note.startswith(OPERATOR_NOTE)]
        places = [place for place in (place_of(reversed(frames)), *operators[:1]) if place]
        line, where = first_line(error), ", ".join(places or [_spot(*frame) for frame in frames[-1:]])
    return (f"{kind}: {line}" if line else kind) + (f" ({where})" if where else "")


def first_line(error: BaseException) -> str:
    """The first line of the exception's message that is not blank; empty where there is none."""
    lines = (line.strip() for line in message_of(error).splitlines())
    return next((line[:_MESSAGE_CHARACTERS] for line in lines if line), "")


def message_of(error: BaseException) -> str:
    """What the exception says, in characters that can be stored; of a long one the two ends."""
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001 - somebody's `__str__` may do anything
        return "its message cannot be printed"
    if len(text) > 2 * _END_CHARACTERS:
        text = f"{text[:_END_CHARACTERS]}\n...\n{text[-_END_CHARACTERS:]}"
    return text.encode(errors="backslashreplace").decode()


def _notes(error: BaseException) -> list[str]:
    notes = getattr(error, "__notes__", None)
    return [note for note in notes if isinstance(note, str)] if isinstance(notes, list) else []


_BELOW = {"torch", "numpy", "functorch", "bench", *sys.stdlib_module_names} - {"__main__"}
_OWN = ("torch.optim.", "bench.catalog.")
"""Modules of the packages above that hold models and optimizers themselves."""


def place_of(frames: Iterable[tuple[FrameType, int]]) -> str | None:
    """`file:line` of the first frame that belongs to a model, an optimizer or their package; None where none does.

    Args:
        frames: The innermost first, as `traceback.walk_stack` gives them.
    """
    for frame, line in frames:
        module = str(frame.f_globals.get("__name__", ""))
        if f"{module}.".startswith(_OWN) or module.partition(".")[0] not in _BELOW:
            return _spot(frame, line)
    return None


def _spot(frame: FrameType, line: int) -> str:
    return f"{Path(frame.f_code.co_filename).name}:{line}"


_PHRASES = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be a text",
    "string_too_short": "must not be empty",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "none_required": "must be left out",
    "greater_than_equal": "must be {ge} or more",
    "less_than_equal": "must be {le} or less",
    "greater_than": "must be above {gt}",
    "less_than": "must be below {lt}",
    "literal_error": "must be {expected}",
    "too_short": "must not be empty",
    "too_long": "must have at most {max_length} values",
    "finite_number": "must be finite",
    "string_pattern_mismatch": "must match {pattern}",
    "string_too_long": "must have at most {max_length} characters",
    "model_type": "must be a table",
    "dict_type": "must be a table",
    "missing": "is missing",
}


def phrase(kind: str, context: Mapping[str, Any], otherwise: str) -> str:
    """What a value must be, in the words of a configuration rather than Python's.

    Args:
        kind: The type of a fault as pydantic names it.
        context: What pydantic says beside it.
        otherwise: What it says of a fault that has no words here.
    """
    try:
        return _PHRASES[kind].format_map(context)
    except KeyError:
        return otherwise.removeprefix("Value error, ")


def nearest(given: str, allowed: Iterable[str], count: int = 3, *, cutoff: float = 0.5) -> list[str]:
    """The names in `allowed` closest to `given`, best first; at most `count`, alike by `cutoff` (0 to 1) at least."""
    names = list(allowed)
    by_folded = {name.casefold(): name for name in names}
    matches = difflib.get_close_matches(given.casefold(), by_folded, n=count, cutoff=cutoff)
    return [by_folded[match] for match in matches]


def nearest_sentence(matches: Sequence[str]) -> str:
    """`Nearest: a, b. ` with a space behind it, or nothing where nothing is near."""
    return f"Nearest: {', '.join(matches)}. " if matches else ""
