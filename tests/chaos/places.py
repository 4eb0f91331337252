"""One results folder beside what is known to be in it, and what must hold between the two."""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from bench.analysis import last_attempts
from bench.errors import StoreError
from bench.store import load_results
from tests.chaos.attempts import OUT
from tests.chaos.programs import NEXT, Program, raw_metadata

Turn = tuple[str, int]
"""A case's key and the number of a repeat."""


class Place:
    """A results folder and the model of it.

    Attributes:
        folder: The sweep writes to `out` below it.
        acknowledged: Parts of runs that were reported as finished and have not been damaged since.
        inherited: What plans that came by a merge name, by environment.
        own: What the newest plan that was made here names, by environment.
        damaged: Parts that were cut, with what is left of them.
        rows: Of every whole part of a run, by its name without ending, read without the harness.
        versions: The format of every whole part.
    """

    def __init__(self, folder: Path) -> None:
        """Begin with an empty folder."""
        self.folder = folder
        self.acknowledged: set[str] = set()
        self.inherited: dict[str, set[Turn]] = defaultdict(set)
        self.own: dict[str, set[Turn]] = {}
        self.damaged: dict[Path, bytes] = {}
        self.rows: dict[str, dict[str, Any]] = {}
        self.versions: dict[Path, int] = {}
        self._estimates: dict[Path, list[dict[str, Any]]] = {}
        self._plans: dict[Path, tuple[str, list[dict[str, Any]]]] = {}  # with the source of a merge that it came from
        self._seen: dict[Path, bytes] = {}

    def __repr__(self) -> str:
        """The folder's name, as hypothesis prints a history."""
        return self.folder.name

    @property
    def data(self) -> Path:
        """Where the parts are."""
        return self.folder / OUT / "data"

    @property
    def planned(self) -> dict[str, set[Turn]]:
        """What the newest plans name, by environment."""
        return {key: self.inherited[key] | self.own.get(key, set()) for key in {*self.inherited, *self.own}}

    def turns(self, environment_key: str) -> set[Turn]:
        """What was finished on a machine."""
        return {
            (row["case_key"], row["repeat"]) for row in self.rows.values() if row["environment_key"] == environment_key
        }

    def files(self) -> dict[Path, bytes]:
        """Every part as it is."""
        return {path: path.read_bytes() for path in sorted(self.data.rglob("*.parquet"))}

    def whole(self, kind: str) -> list[Path]:
        """Parts of a kind that are not damaged."""
        found = {"run": "runs/*.parquet", "plan": "plan-*.parquet", "estimates": "estimates/*.parquet"}[kind]
        return [path for path in sorted(self.data.glob(found)) if path not in self.damaged]

    def damage(self, path: Path) -> None:
        """Cut a part of a run short: its run is missing from now on."""
        path.write_bytes(path.read_bytes()[:-20])
        self.damaged[path] = path.read_bytes()
        self.acknowledged.discard(path.stem)
        for known in (self._seen, self.versions):
            del known[path]
        del self.rows[path.stem]

    def newer(self, program: Program, below: Path | None = None) -> set[str]:
        """What `program` may say when it refuses this folder; nothing where it knows every part."""
        return {
            f"{path.relative_to(below) if below else path}: written by a newer version (format {version}; this one "
            f"reads up to {program.version})"
            for path, version in self.versions.items()
            if version > program.version
        }

    def load(self, program: Program) -> Any:
        """The frame as `program` reads it; only damage may be warned of."""
        with program.running(), warnings.catch_warnings():
            warnings.simplefilter("ignore" if self.damaged else "error", UserWarning)
            return load_results(self.data)

    def look(self) -> None:
        """Take up what is new. Raises AssertionError where anything that was there is gone or not as it was."""
        for aside in self.folder.rglob("*.damaged"):
            path = aside.with_suffix(".parquet")
            assert self.damaged.get(path) == aside.read_bytes(), f"{path} was set aside, and nothing had damaged it"
            del self.damaged[path]
            aside.unlink()
        files = self.files()
        if gone := {*self._seen, *self.damaged} - {*files}:
            raise AssertionError(f"gone: {gone}")
        for path, data in files.items():
            if path in self.damaged:
                assert self.damaged[path] == data, f"{path}: damaged, and yet written to"
                continue
            if path not in self._seen:
                self._take(path)
            assert self._seen.setdefault(path, data) == data, f"{path}: changed after it was written"
        assert not self.acknowledged - {*self.rows}, "acknowledged and lost"

    def _take(self, path: Path) -> None:
        self.versions[path] = int(raw_metadata(path)[b"bench.schema_version"])
        if path.parent.name == "runs":
            (self.rows[path.stem],) = pq.ParquetFile(path).read().to_pylist()
        elif path.name.startswith("plan-"):
            source = json.loads(raw_metadata(path)[b"bench.notes"]).get("merged_from", "")
            self._plans[path] = (source, pq.ParquetFile(path).read().to_pylist())
        elif path.parent.name == "estimates":
            self._estimates[path] = pq.ParquetFile(path).read().to_pylist()

    def check(self, program: Program) -> None:
        """Hold what `program` reads against the model; a program that is too old must refuse.

        Raises:
            AssertionError: A row is missing, too many, there twice, or another than it was.
        """
        self.look()
        reader = program.reader
        if refusals := self.newer(reader):
            with pytest.raises(StoreError) as caught:
                self.load(reader)
            assert str(caught.value) in refusals
            reader = NEXT
        frame = self.load(reader)
        keys = frame["run_key"].dropna()
        assert not keys.duplicated().any(), "a run is there twice"
        assert set(keys) == {row["run_key"] for row in self.rows.values()}, "other runs than were written"
        for key, turns in self.planned.items():
            planned = last_attempts(frame[frame["planned"] & (frame["environment_key"] == key)])
            found = list(zip(planned["case_key"], planned["repeat"], strict=True))
            assert len(found) == len(turns) and set(found) == turns, "planned is not rows"
        missing = sum(len(turns - self.turns(key)) for key, turns in self.planned.items())
        assert len(frame) == len(self.rows) + missing, "rows that nobody planned or ran"
        self._check_values(frame)

    def check_upgraded(self, program: Program, kind: str) -> None:
        """Hold what `program` reads where `write_newer` has put a part of its format in; AssertionError as `check`."""
        rows = [plain(row) for row in self.load(program).to_dict("records")]
        keys = {row["run_key"] for row in rows if "run_key" in row}
        assert keys == {row["run_key"] for row in self.rows.values()} | ({"f" * 16} if kind == "run" else set())
        if kind == "run":
            assert [row["schema_version"] for row in rows if row.get("from_the_future") == 0.5] == [program.version]

    def _by_key(self) -> tuple[dict[tuple[str, str], dict[str, Any]], dict[str, dict[str, Any]]]:
        """Estimates by case and key; and of each case those of the part whose name comes last."""
        exact, last = {}, {}
        for path in sorted(self._estimates):
            for row in map(plain, self._estimates[path]):
                case = row.pop("case_key")
                del row["estimate_device"]
                exact[case, row["estimate_key"]] = last[case] = row
        return exact, last

    def _named_estimates(self) -> dict[tuple[Any, ...], set[str | None]]:
        """By run, the keys of the estimates that the newest plans name for it: one, but for plans that were merged."""
        newest = {}
        for path in sorted(self._plans):
            source, rows = self._plans[path]
            newest[source, rows[0]["environment_key"]] = rows
        named = defaultdict(set)
        for row in (row for rows in newest.values() for row in rows):
            named[_identity(row)].add(row.get("estimate_key"))
        return named

    def _check_values(self, frame: Any) -> None:
        """Each run reads as it was written, beside the estimates of its plan; what its writer did not know is unknown."""
        exact, last = self._by_key()
        named = self._named_estimates()
        written = {row["run_key"]: plain(row) for row in self.rows.values()}
        versions = {path.stem: version for path, version in self.versions.items()}
        by_key = {row["run_key"]: versions[stem] for stem, row in self.rows.items()}
        columns = {name for row in written.values() for name in row}
        assert columns <= {*frame.columns}, f"columns that are gone: {columns - {*frame.columns}}"
        known = columns | {name for name in frame.columns if name.startswith("gradient_noise_") or name == "novelty"}
        made = {name for row in exact.values() for name in row} | {"estimate_key"}
        for row in frame.to_dict("records"):
            found = plain(row)
            beside = {name: value for name, value in found.items() if name in made}
            case = row["case_key"]
            allowed = [
                exact.get((case, key), {"estimate_key": key}) if key else last.get(case, {})
                for key in named.get(_identity(row), {None})
            ]
            assert beside in allowed, f"estimates of another key: {beside}, not {allowed}"
            if "run_key" in found:
                expected = written[found["run_key"]]
                assert {name: value for name, value in found.items() if name in known} == expected
                assert found["schema_version"] == by_key[found["run_key"]]


def _identity(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a plan and a run of it agree in."""
    return tuple(row[name] for name in ("case_key", "repeat", "code_key", "protocol_key", "environment_key"))


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row's values as JSON has them, without those that are unknown."""
    known = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in row.items()}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in known.items()
        if value is not None and str(value) not in ("<NA>", "nan")
    }


def rows_of(frame: Any) -> list[str]:
    """Every row of a frame as text, in an order that follows from the rows."""
    return sorted(json.dumps(plain(row), sort_keys=True) for row in frame.to_dict("records"))


def turn_of(part: str) -> tuple[str, int]:
    """The case and the repeat that a part's name says."""
    case_key, repeat, *_ = part.split("-")
    return case_key, int(repeat.removeprefix("r"))
