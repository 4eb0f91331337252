"""What every figure and section draws from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from bench.analysis import Findings
from bench.report.drawing import Drawing
from bench.report.hardware import Hardware
from bench.report.toml import to_toml


@dataclass(frozen=True)
class Contents:
    """One report's material; computed once.

    Attributes:
        name: Of the report's folder.
        frame: One row a run, from `bench.load`.
        summary: One row a case, from `bench.analysis.summarise_cases`.
        findings: What a reader must know before trusting or publishing them, from `bench.analysis.judge`.
        notes: What the sweeps noted, one a folder and environment, without paths.
        drawings: The figures, by name, in their order.
        sources: The folders that the results were read from, without the path to them.
        hardware: The machines held against one of them; `None` where there is only one.
    """

    name: str
    frame: pd.DataFrame
    summary: pd.DataFrame
    findings: Findings
    notes: Sequence[Mapping[str, Any]] = ()
    drawings: Mapping[str, Drawing] = field(default_factory=dict)
    sources: Sequence[str] = ()
    hardware: Hardware | None = None

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
