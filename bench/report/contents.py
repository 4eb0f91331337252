"""What every figure and section draws from, and what a file of `figures/` and of `sections/` defines.

A report carries the configuration that makes it: the checked one, as TOML again.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pandas as pd

from bench.analysis import Findings
from bench.report.blocks import Block, Picture
from bench.report.hardware import Hardware

if TYPE_CHECKING:  # drawing imports matplotlib, and a report whose figures are kept draws nothing
    from bench.report.drawing import Drawing

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(values: Mapping[str, Any]) -> str:
    """Values as JSON has them (objects, lists, texts, numbers, booleans) as a TOML document; nulls are left out."""
    known = {key: value for key, value in values.items() if value is not None}
    lines = [f"{_key(key)} = {_value(value)}" for key, value in known.items() if not _is_section(value)]
    for key, value in known.items():
        if isinstance(value, Mapping):
            lines += ["", f"[{_key(key)}]", *_pairs(value)]
        elif _is_section(value):
            for item in value:
                lines += ["", f"[[{_key(key)}]]", *_pairs(item)]
    return "\n".join(lines).strip() + "\n"


def _is_section(value: Any) -> bool:
    """Whether a value is written with a head of its own."""
    return isinstance(value, Mapping) or (
        isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)
    )


def _pairs(values: Mapping[str, Any]) -> list[str]:
    return [f"{_key(key)} = {_value(value)}" for key, value in values.items() if value is not None]


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{ {', '.join(_pairs(value))} }}" if value else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, int | float) else _text(str(value))


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _text(key)


def _text(text: str) -> str:
    """A basic string; JSON's escapes are TOML's but for the delete character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


@dataclass(frozen=True)
class Contents:
    """One report's material; computed once.

    Attributes:
        name: Of the report's folder.
        frame: One row a run, from `bench.load`.
        summary: One row a case, from `bench.analysis.summarise_cases`.
        findings: What a reader must know before trusting or publishing them, from `bench.analysis.judge`.
        notes: What the sweeps noted, one a folder and environment, without paths.
        pictures: The figures that were drawn, by name, in their order.
        sources: The folders that the results were read from, without the path to them.
        hardware: The machines compared with one of them; `None` where there is only one.
    """

    name: str
    frame: pd.DataFrame
    summary: pd.DataFrame
    findings: Findings
    notes: Sequence[Mapping[str, Any]] = ()
    pictures: Mapping[str, Picture] = field(default_factory=dict)
    sources: Sequence[str] = ()
    hardware: Hardware | None = None

    @property
    def headline(self) -> Picture | None:
        """The most important figure there is, which stands right after the answer: the first in their order."""
        return next(iter(self.pictures.values()), None)

    @property
    def machines(self) -> list[str]:
        """The machines in words, in order of appearance."""
        return list(dict.fromkeys(self.summary["machine"]))

    @property
    def cpu_only(self) -> bool:
        """Whether nothing here was measured on a GPU."""
        return bool((self.frame["device"] == "cpu").all())

    @property
    def title(self) -> str:
        """The sweep's own name where it noted one, else the folder's."""
        return " and ".join(self.noted("name")) or self.name

    @property
    def configs(self) -> dict[str, str]:
        """The configurations that the sweeps noted as TOML, by the name of the file that the report gives each."""
        noted = [note["config"] for note in self.notes if note.get("config")]
        return _named("config", [to_toml(config) if isinstance(config, Mapping) else str(config) for config in noted])

    @property
    def devices(self) -> dict[str, str]:
        """The GPUs as the estimates took them, as device files, by the name of the file that the report gives each."""
        return _named("device", self.noted("device_file"))

    def noted(self, key: str) -> list[str]:
        """The distinct texts that the sweeps noted under `key`, empty ones left out."""
        return list(dict.fromkeys(str(note[key]) for note in self.notes if note.get(key)))


def _named(stem: str, texts: Sequence[str]) -> dict[str, str]:
    """Distinct texts of files, by name: `<stem>.toml`, numbered where there are several."""
    distinct = list(dict.fromkeys(texts))
    names = [f"{stem}.toml"] if len(distinct) == 1 else [f"{stem}-{n}.toml" for n in range(1, len(distinct) + 1)]
    return dict(zip(names, distinct, strict=True))


@dataclass(frozen=True, slots=True)
class FigureKind:
    """A kind of figure.

    Attributes:
        order: Its place among the figures, the most important first: 1 to 8 compare machines, then 9 switches, 10
            accuracy, 20 throughput, 25 loading, 30 memory, 40 categories, 50 energy, 60 steps.
        draw: The drawing, or `None` where the results have nothing to show in it.
    """

    order: int
    draw: Callable[[Contents], Drawing | None]


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the report.

    Attributes:
        order: Its place: 10 answer, 15 figures, 18 fastest cases, 20 validity, 25 fit to publish, 35 to 46 what the
            numbers say, 50 all cases, 55 disclosures, 60 limits, 70 how to reproduce. The first holds the most
            important figure.
        title: Its heading; empty for the first, which stands under the report's title.
        build: What it says; nothing leaves the section out.
    """

    order: int
    title: str
    build: Callable[[Contents], Sequence[Block]]


def all_of(package: ModuleType, name: str) -> list[Any]:
    """The object called `name` of every module of `package`, by its `order`, then by the module's name.

    Raises:
        AttributeError: A module of the package does not define it.
    """
    modules = sorted(info.name for info in pkgutil.iter_modules(package.__path__))
    items = [getattr(importlib.import_module(f"{package.__name__}.{module}"), name) for module in modules]
    return sorted(items, key=lambda item: item.order)
