"""What is known of each column of results beside its value: the table that all others read.

A record says it where it declares the column: `column(default, ...)`, or `field(metadata=about(...))` for none.
`bench.records.FIELDS` has the entries of all records. The unit of a column is the ending of its name.

Some attributes of `Field` are places in a list: lower ones come first, equal ones in the order of declaration, and a
field with 0 is not in the list.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from bench.units import GIB, KIB, MIB, TIB, format_bytes, format_flop, format_frac, format_rate, format_seconds

Kind = Literal["environment", "protocol", "code", "flags"]
InKey = bool | Literal["if true", "if unusual"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Unit:
    """How numbers of one unit are printed and read.

    Attributes:
        words: Prints a setting or a reading, with all digits that it has.
        measured: Prints a measurement, rounded.
        spellings: What people write behind a measurement, with what one of it is in the column's unit; empty if
            reports print no measurements in it.
    """

    words: Callable[[float], str]
    measured: Callable[[float], str] = "{:.3g}".format
    spellings: Mapping[str, float] = field(default_factory=dict)


_BYTES = {"b": 1, "kib": KIB, "mib": MIB, "gib": GIB, "tib": TIB, "kb": KIB, "mb": MIB, "gb": GIB}
_RATES = {"samples/s": 1, "/s": 1, "samples / s": 1}
_FLOP = {"flop": 1.0, "mflop": 1e6, "gflop": 1e9, "tflop": 1e12, "pflop": 1e15}
_SECONDS = {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "us": 1e-6, "ns": 1e-9}

UNITS: Mapping[str, Unit] = {
    "_bytes": Unit(format_bytes, format_bytes, _BYTES),
    "_flop_per_s": Unit(
        lambda value: f"{format_flop(value)}/s",
        lambda value: f"{format_flop(value)}/s",
        {f"{name}/s": factor for name, factor in _FLOP.items()},
    ),
    "_flop": Unit(format_flop, format_flop, _FLOP),
    "_per_s": Unit(format_rate, lambda value: format_rate(value, "samples"), _RATES),
    **dict.fromkeys(("_per_s_low", "_per_s_high"), Unit(format_rate)),  # the ends of a rate's interval
    "_s": Unit("{:g} s".format, format_seconds, _SECONDS),
    "_multiplier_frac": Unit(lambda value: f"{value * 100:g} %"),
    "_frac": Unit(format_frac, lambda value: format_frac(value).removeprefix("+"), {"%": 0.01}),
    "_j": Unit("{:g} J".format, spellings={"j": 1}),
    "joules_per_sample": Unit("{:g} J/sample".format, spellings={"j/sample": 1}),
    "_hz": Unit(lambda value: f"{value / 1e6:,.0f} MHz"),
    "_w": Unit("{:g} W".format),
    "_c": Unit("{:g} °C".format),
}
"""By the ending of a column's name."""

_WRITTEN = ("GPU", "CPU", "RAM", "CUDA", "cuDNN", "UUID", "ECC", "EDPp", "MIG", "MPS", "OS", "SM", "TGP", "VBIOS")
_TITLES = {word.lower(): word for word in _WRITTEN}


def unit_of(name: str) -> str:
    """The ending of `UNITS` that a column's name has; empty if its values have no unit."""
    return next((ending for ending in UNITS if name.endswith(ending)), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One column.

    Attributes:
        name: The column's, from the record.
        group: The name of the record in lower case, such as `environment`.
        title: Its name for people; the name without its unit unless given.
        absent: What it means for people that there is no value.
        gpu: Only a GPU has it.
        stored: Whether it is in result files.
        key: Whether it is part of its record's key. `if true`: only where it is true (or a number is given), so that
            keys from before there was such a field stay as they are. `if unusual`: only where it is known and not
            `usual`, for the same reason.
        usual: Of a setting, what it is where nobody set it.
        differs: What a difference in it is between two sides of a comparison: one of `code`, or of `flags`, which
            change the work of a step and are refused unless compared across. Empty: one of `environment` or
            `protocol`, by its record, or not compared. `no`: not compared.
        needed: Place among the fields that results must have to be published.
        helpful: Place among those that they should have.
        first: Place among the differences that are listed before the others.
        label: Place among what tells machines of one name apart, the most telling first.
        reading: Place among the readings that a report gives as a range over all runs.
        main: Whether it is in a report's table of the machine, not folded away below it.
        if_known: Whether a report leaves it out if no run has it: earlier versions did not record it.
        summary: Whether the summary of a case has it, of its machine or its protocol.
        peak: Whether it is a peak of memory: compared between sides, and the largest of its processes for a case.
        within: What it can be in its unit, with a margin: a value off by a factor of 1000 lies outside.
    """

    name: str = ""
    group: str = ""
    title: str = ""
    absent: str = "unknown"
    gpu: bool = False
    stored: bool = True
    key: InKey = False
    usual: bool | float | str | None = None
    differs: Literal["", "code", "flags", "no"] = ""
    needed: int = 0
    helpful: int = 0
    first: int = 0
    label: int = 0
    reading: int = 0
    main: bool = False
    if_known: bool = False
    summary: bool = False
    peak: bool = False
    within: tuple[float, float] | None = None

    def in_key(self, value: Any) -> bool:
        """Whether its record's key is also made of this value."""
        if self.key == "if unusual":
            return value is not None and value != self.usual
        return self.key is True or bool(self.key and value)

    @property
    def kind(self) -> Kind | None:
        """What a difference in it is; `None` if it is not compared."""
        if self.differs == "no":
            return None
        return self.differs or _KINDS.get(self.group)

    def words(self, value: Any) -> str:
        """A known value for people, with its unit: `2.00 GiB`, `yes`."""
        if isinstance(value, bool) or str(value) in ("True", "False"):
            return "yes" if str(value) == "True" else "no"
        unit = unit_of(self.name)
        return UNITS[unit].words(float(value)) if unit else str(value)


_KINDS: Mapping[str, Kind] = {"environment": "environment", "protocol": "protocol"}


def about(**known: Any) -> dict[str, Field]:
    """The metadata of a record's field, from attributes of `Field`."""
    return {"entry": Field(**known)}


def column(default: T, **known: Any) -> T:
    """A record's field with a default and attributes of `Field`."""
    made: T = field(default=default, metadata=about(**known))
    return made


@functools.cache
def entries(record: type) -> Mapping[str, Field]:
    """The entries of a record's columns, in order; a column without attributes has those of `Field()`."""
    group = record.__name__.lower()
    declared = {one.name: one.metadata.get("entry", Field()) for one in dataclasses.fields(record)}
    return {
        name: dataclasses.replace(entry, name=name, group=group, title=entry.title or _title(name))
        for name, entry in declared.items()
    }


def key_fields(record: Any) -> dict[str, Any]:
    """The values of a record that its key is made of, by name."""
    record_type: type = type(record)
    values = ((entry, getattr(record, name)) for name, entry in entries(record_type).items())
    return {entry.name: value for entry, value in values if entry.in_key(value)}


def _title(name: str) -> str:
    """`gpu_total_bytes` reads `GPU total`."""
    return " ".join(_TITLES.get(word, word) for word in name.removesuffix(unit_of(name)).split("_"))
