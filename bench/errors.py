"""One exception tree for everything that a user can mend, and the words it speaks in.

Every message says where, what was given, what is allowed, the nearest match and what to do next. The command line
prints the message and leaves with the class's `exit_code`; anything outside this tree is a fault of the harness and
keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
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

    def __init__(self, kind: str, given: str, allowed: Iterable[str], *, list_command: str | None = None) -> None:
        """Build the message from the name given and those allowed.

        Args:
            kind: What was looked for, in the singular: `model`, `device`.
            given: The name as the user wrote it.
            allowed: Every name that would have been accepted.
            list_command: The command that lists them, without `bench`; `list KINDs` unless given.
        """
        self.kind, self.given = kind, given
        self.matches = nearest(given, allowed)
        command = list_command or f"list {kind}s"
        super().__init__(f'unknown {kind} "{given}". {nearest_sentence(self.matches)}List them: bench {command}')


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


_PHRASES = {
    "int_type": "must be a whole number", "int_from_float": "must be a whole number", "float_type": "must be a number",
    "bool_type": "must be true or false", "string_type": "must be a text", "string_too_short": "must not be empty",
    "list_type": "must be a list", "tuple_type": "must be a list", "none_required": "must be left out",
    "greater_than_equal": "must be {ge} or more", "less_than_equal": "must be {le} or less",
    "greater_than": "must be above {gt}", "less_than": "must be below {lt}", "literal_error": "must be {expected}",
    "too_short": "must not be empty", "too_long": "must have at most {max_length} values",
    "finite_number": "must be finite",
    "string_pattern_mismatch": "must match {pattern}", "string_too_long": "must have at most {max_length} characters",
    "model_type": "must be a table", "dict_type": "must be a table", "missing": "is missing",
}  # fmt: skip


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
