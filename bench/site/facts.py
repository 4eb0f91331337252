"""What a site says of one bundle, read from its parts once and kept as JSON beside it.

The numbers are those of `bench.load`, and whether they are fit to publish is what `bench check` finds in the data.
Texts are kept as the bundle has them: they may be anybody's, and are escaped where they are shown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from bench.analysis import (
    Findings,
    damaged_parts,
    judge,
    last_attempts,
    spread_hosts,
    summarise_cases,
    told_reproductions,
)
from bench.analysis.findings import group_keys
from bench.bundles import open_bundle
from bench.bundles.bundle import MANIFEST, parse_manifest
from bench.comparison import FLAGS, METRICS
from bench.devices import card_name, match_device
from bench.records import AXES, FIELDS, Environment, columns, stable_hash
from bench.report.words import field_words
from bench.stats import host_means
from bench.store import planned_runs, read_results
from bench.units import format_bytes

CODE = ("analysis", "bundles", "comparison", "devices", "records", "site", "stats", "store", "units.py")
"""What decides the facts of a bundle: kept ones that other code made are read again."""

RATE, ENERGY = "samples_per_s", "joules_per_sample"
"""The metrics that a site shows with an interval over processes."""

_LATEST_S = 4_102_444_800
"""2100-01-01: a clock beyond it is wrong, and would stay the newest for ever."""

_ABSURD = 2.0**53
"""No rate and no energy is as large."""

_SHOWN = tuple(name for name in columns(Environment) if FIELDS[name].main or FIELDS[name].key)

_OF_CASES = (
    *(
        "case_key",
        "device",
        "cpu_model",
        "cpu_cores_usable",
        "gpu_name",
        "gpu_total_bytes",
        "mig",
        "device_memory_bytes",
    ),
    *(*AXES, *FLAGS),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFacts:
    """One case as one bundle measured it on one machine.

    Attributes:
        key: The `case_key`.
        axes: Its value on each of `AXES`.
        device: What its GPU or CPU is called on the site; equal for all boards of one model.
        gpu: Whether that is a GPU.
        hosts: The hashes of the hosts that it ran on, sorted; none where a run does not say.
        work: A hash of the flags under which `bench compare` would refuse to compare it with others.
        status: Of its runs, the gravest.
        values: By metric one number a process (a host where repeats were spread over several), by repeat.
        peak_allocated_bytes: The largest of its processes.
        why_not: The codes of the findings that stand against publishing it.
    """

    key: str
    axes: dict[str, str | int]
    device: str
    gpu: bool
    hosts: tuple[str, ...]
    work: str
    status: str
    values: dict[str, tuple[float, ...]]
    peak_allocated_bytes: int | None
    why_not: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingFacts:
    """One finding of `bench check`: its code, its sentence, its remedy, and whether it stands against publishing."""

    code: str
    text: str
    remedy: str
    blocks: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleFacts:
    """One bundle.

    Attributes:
        name: Of the results.
        digest: Of the bundle's manifest, as `bench bundle` prints it.
        size_bytes: Of the archive.
        version: Of bench that wrote it.
        ended_unix_s: When its newest run began, in whole seconds; None where no run says, or its clock is absurd.
        machines: Of each environment its fields, as titles and words.
        findings: What `bench check` finds in the data.
        runs: A hash of each run, sorted: equal where two bundles hold the same measurement.
        cases: In a reader's order.
    """

    name: str
    digest: str
    size_bytes: int
    version: str
    ended_unix_s: int | None
    machines: tuple[tuple[tuple[str, str], ...], ...]
    findings: tuple[FindingFacts, ...]
    runs: tuple[str, ...]
    cases: tuple[CaseFacts, ...]

    @property
    def text(self) -> bytes:
        """As JSON; equal facts have equal bytes."""
        return (json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False) + "\n").encode("ascii")

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """The facts that `text` gives. Raises ValueError, TypeError or KeyError where it is not of this form."""
        found: dict[str, Any] = json.loads(text)
        cases = [
            CaseFacts(
                **{
                    **case,
                    "hosts": tuple(case["hosts"]),
                    "values": {name: tuple(values) for name, values in case["values"].items()},
                    "why_not": tuple(case["why_not"]),
                }
            )
            for case in found.pop("cases")
        ]
        findings = tuple(FindingFacts(**finding) for finding in found.pop("findings"))
        found["machines"] = tuple(tuple((title, words) for title, words in fields) for fields in found["machines"])
        found["runs"] = tuple(found["runs"])
        return cls(**found, findings=findings, cases=tuple(cases))

    @property
    def publishable(self) -> bool:
        """Whether nothing stands against publishing it as a whole."""
        return not any(finding.blocks for finding in self.findings)


def read_facts(bundle: Path) -> BundleFacts:
    """The facts of a bundle, which is verified against its manifest first.

    Raises:
        StoreError: Not a bundle, one that was changed, or one without a run that counts.
    """
    with open_bundle(bundle) as folder, np.errstate(all="ignore"):  # a stranger's numbers may be anything
        manifest = parse_manifest((folder / MANIFEST).read_bytes())
        loaded = read_results(folder)
        frame = planned_runs(loaded)
        summary = summarise_cases(frame)
        told = [*damaged_parts(loaded), *told_reproductions(loaded.notes)]
        findings = judge(loaded.frame, summary=summary).joined(told)
    facts = BundleFacts(
        name=manifest.name,
        digest=manifest.digest,
        size_bytes=bundle.stat().st_size,
        version=manifest.version,
        ended_unix_s=_newest(frame),
        machines=tuple(_machines(frame)),
        findings=tuple(
            FindingFacts(code=item.code, text=item.text, remedy=item.remedy, blocks=item.blocks) for item in findings
        ),
        runs=_runs(frame),
        cases=tuple(_cases(frame, summary, findings)),
    )
    return BundleFacts.parse(facts.text)  # to the byte what will be kept


def _cases(frame: pd.DataFrame, summary: pd.DataFrame, findings: Findings) -> list[CaseFacts]:
    runs = last_attempts(frame).sort_values("repeat", kind="stable").reset_index(drop=True)
    values = {name: METRICS[name].values(runs).tolist() for name in (RATE, ENERGY)}
    spread = spread_hosts(runs).tolist()
    hosts = [None if pd.isna(host) else str(host) for host in runs["host_hash"]]
    rows: dict[Any, list[int]] = {}
    for place, key in enumerate(group_keys(runs)):
        rows.setdefault(key, []).append(place)
    found = []
    firsts = dict(zip(rows, _rows(runs.iloc[[places[0] for places in rows.values()]], _OF_CASES), strict=True))
    told = summary[["status", "peak_allocated_bytes"]].to_dict("records")
    for key, case in zip(group_keys(summary), told, strict=True):
        places, first = rows[key], firsts[key]
        ran_on = {hosts[place] for place in places}
        found.append(
            CaseFacts(
                key=str(first["case_key"]),
                axes={axis: _plain(first[axis]) for axis in AXES},
                device=_device(first),
                gpu=first["device"] != "cpu",
                hosts=() if None in ran_on else tuple(sorted(map(str, ran_on))),
                work=_work(first),
                status=str(case["status"]),
                values={name: _by_host(column, spread, places) for name, column in values.items()},
                peak_allocated_bytes=_whole(case["peak_allocated_bytes"]),
                why_not=tuple(item.code for item in findings.blocking if not item.runs or key in item.runs),
            )
        )
    return found


def _by_host(column: Sequence[float], spread: Sequence[str], places: Sequence[int]) -> tuple[float, ...]:
    known = [place for place in places if column[place] < _ABSURD]
    return tuple(host_means([column[place] for place in known], [spread[place] for place in known]))


def _device(row: Mapping[str, Any]) -> str:
    """What all boards of one model are called, and a CPU with so many of its cores."""
    if row["device"] == "cpu":
        cores = f", {row['cpu_cores_usable']} cores" if row["cpu_cores_usable"] is not None else ""
        return f"{row['cpu_model'] or 'CPU of unknown model'} (CPU{cores})"
    name, total = row["gpu_name"], row["gpu_total_bytes"]
    if name is None:
        return f"{row['device']} of unknown model"
    known = match_device(str(name), total)
    same_name = known is None or known == match_device(str(name))
    label = str(name) if same_name else f"{name}, {format_bytes(total)}"
    label = f"{label}, MIG" if row["mig"] else label
    return label if row["device_memory_bytes"] is None else card_name(label, int(row["device_memory_bytes"]))


def _work(row: Mapping[str, Any]) -> str:
    """The flags of a run that are known; workers of a loader only where there is one."""
    flags = {name: str(row[name]) for name in FLAGS if row.get(name) is not None}
    if row["input"] != "loader":
        flags.pop("loader_workers", None)
    return stable_hash(flags)


def _machines(frame: pd.DataFrame) -> list[tuple[tuple[str, str], ...]]:
    """Each environment's fields in words, by their titles; what is unknown is left out."""
    return [
        tuple((FIELDS[name].title, field_words(name, row[name])) for name in _SHOWN if row.get(name) is not None)
        for row in _rows(frame.drop_duplicates("environment_key"), _SHOWN)
    ]


def _runs(frame: pd.DataFrame) -> tuple[str, ...]:
    told = _rows(frame[frame["run_key"].notna()], ("run_key", "started_unix_s", "wall_window_s"))
    return tuple(sorted(stable_hash({name: str(value) for name, value in row.items()}) for row in told))


def _rows(frame: pd.DataFrame, names: Sequence[str]) -> list[dict[str, Any]]:
    """Some columns, row by row; what is unknown, or of a column that is not there, is None."""
    columns = {
        name: [None if pd.isna(value) else value for value in frame[name].tolist()]
        if name in frame
        else [None] * len(frame)
        for name in names
    }
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _newest(frame: pd.DataFrame) -> int | None:
    begun = frame["started_unix_s"].to_numpy(dtype=float, na_value=math.nan)
    return max((int(value) for value in begun.tolist() if 0 <= value < _LATEST_S), default=None)


def _plain(value: Any) -> str | int:
    """A value of an axis as JSON has it: numpy's integers are none of Python's."""
    return value if isinstance(value, str) else int(value)


def _whole(value: Any) -> int | None:
    return None if pd.isna(value) else int(value)
