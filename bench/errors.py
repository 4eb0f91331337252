"""One exception tree for every error that a user can fix, and the wording of messages.

Every message states the place, what was given, what is allowed, the nearest match and what to do next. The command line
prints the message and exits with the class's `exit_code`; anything outside this tree is a bug in bench and keeps its
traceback.
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
    """An error with a remedy; `str(error)` is the whole message."""

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
            matches: The nearest names, if the caller knows better than their spelling.
            remedy: Another sentence on what to do, without a full stop.
        """
        self.kind, self.given = kind, given
        self.matches = nearest(given, allowed) if matches is None else list(matches)
        command = list_command or f"list {kind}s"
        listing = f"List them: bench {command}" + (f". {remedy}" if remedy else "")
        super().__init__(f'unknown {kind} "{given}". {nearest_sentence(self.matches)}{listing}')


class ConfigError(BenchError):
    """A configuration with errors; all of them are reported at once."""

    def __init__(self, faults: Sequence[str]) -> None:
        """Keep `faults`, one line each, which already begin with their place."""
        self.faults = tuple(faults)
        super().__init__("\n".join(self.faults))


class DataError(BenchError):
    """A data set that cannot be read or downloaded."""


class DeviceError(BenchError):
    """A device that was requested or found and cannot be used."""


class StoreError(BenchError):
    """Results that cannot be written or read."""


class BusyError(BenchError):
    """A device or a folder that another process has locked."""


class InfrastructureError(BenchError):
    """Runs fail for causes outside the cases; the sweep stops instead of filling rows with noise."""

    exit_code = EXIT_FAILED_CASES


class Unsupported(BenchError):  # noqa: N818 - a verdict on a case, not a fault
    """A case that cannot run, with the reason; it becomes a row with the status `skipped`."""


class ReadsValues(Unsupported):
    """A step that depends on values of tensors that an estimator does not have."""

    def __init__(self, operator: str, place: str | None = None) -> None:
        """Build the message.

        Args:
            operator: The operator that read the values, as torch names it.
            place: The line of the user's code that called it; found among the callers unless given.
        """
        found = place or place_of(traceback.walk_stack(None))
        reader = f"{operator} in {found}" if found else operator
        super().__init__(f"the step reads values from the device ({reader}), so it cannot be traced without running it")


OPERATOR_NOTE = "operator "
"""Prefix of the note that an estimator adds to a foreign exception: the torch operator that raised it."""

_MESSAGE_CHARACTERS = 500
_END_CHARACTERS = 8_000
"""Of a message at its beginning and at its end: what more there is says nothing new, and is searched by patterns."""

_FROM_WORKER = re.compile(r"Caught (\w+) (in [^\n]*)\.\nOriginal Traceback \(most recent call last\):\n")
"""How torch re-raises an exception of another process or thread (torch/_utils.py, `ExceptionWrapper`)."""


def describe_failure(error: BaseException) -> str:
    """An exception of user code in one line: its type, the first line of its message, and where it was raised.

    `ValueError: not a size (model.py:12)`; the place is the innermost line of the model, the optimizer or their
    package, rather than of torch below them, followed by torch's operator if known. For an exception from a worker
    process, the line is the worker's. Never empty: without a message, it has the type and the place.
    """
    try:
        return _described(error)
    except BaseException:  # noqa: BLE001 - the class is somebody's too, and its attributes may do anything
        return "an exception that cannot be described"


def _described(error: BaseException) -> str:
    text, kind = message_of(error), type(error).__name__
    if wrapped := _FROM_WORKER.match(text):
        kind, where = wrapped[1], wrapped[2]
        messages = re.findall(rf"^(?:[\w.]+\.)?{kind}(?:: (.*))?$", text, re.MULTILINE)
        line = messages[-1] if messages else text.splitlines()[-1]
    else:
        frames = list(traceback.walk_tb(error.__traceback__))
        operators = [note.removeprefix(OPERATOR_NOTE) for note in _notes(error) if note.startswith(OPERATOR_NOTE)]
        places = [place for place in (place_of(reversed(frames)), *operators[:1]) if place]
        line, where = first_line(error), ", ".join(places or [_spot(*frame) for frame in frames[-1:]])
    return (f"{kind}: {line}" if line else kind) + (f" ({where})" if where else "")


def first_line(error: BaseException) -> str:
    """The first line of the exception's message that is not blank; empty if there is none."""
    lines = (line.strip() for line in message_of(error).splitlines())
    return next((line[:_MESSAGE_CHARACTERS] for line in lines if line), "")


def message_of(error: BaseException) -> str:
    """The exception's message, in characters that can be stored; of a long one the two ends."""
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
"""Modules of these packages that define models and optimizers."""


def place_of(frames: Iterable[tuple[FrameType, int]]) -> str | None:
    """`file:line` of the first frame that belongs to a model, an optimizer or their package; None if none does.

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
    "string_type": "must be a string",
    "string_too_short": "must not be empty",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "none_required": "must be omitted",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
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
    """What a value must be, in the terms of a configuration rather than Python's.

    Args:
        kind: The type of an error as pydantic names it.
        context: The context that pydantic gives with it.
        otherwise: The message of pydantic, for other types of errors.
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
    """`Nearest: a, b. ` with a trailing space, or empty if nothing is near."""
    return f"Nearest: {', '.join(matches)}. " if matches else ""
