"""Programs of the past and of the future: the present one, made to write results as an older or a newer one does.

An older program writes the columns that the oldest files under `tests/data` have; what a newer one adds is made up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq

from bench.launchers import Answer
from bench.launchers.tasks import estimate_task, measure_task
from bench.store import folder, parts, schema
from bench.store.parts import rows_hash
from tests.chaos import attempts, fake_sweep
from tests.chaos.fake_sweep import FakeLauncher
from tests.data.make_schema_1 import HERE as OLD_FILES
from tests.data.make_schema_1 import write

NOVELTY = pa.field("novelty", pa.float64())
"""What runs of the next format have more than those of the present one."""

_FOR_EVER = contextlib.ExitStack()
_NOTES_HASH = b"bench.notes_sha256"
_BUILD_TABLE = folder.build_table
_NAMES = {"plan": "PLAN", "run": "RUN", "estimates": "ESTIMATE"}
_SCHEMAS = {kind: getattr(schema, name) for kind, name in _NAMES.items()}
_FIRST_COLUMNS = {name for path in (OLD_FILES / "first").rglob("*.parquet") for name in pq.read_schema(path).names}


@dataclass(frozen=True)
class Program:
    """One version of the harness, as far as files tell it from others.

    Attributes:
        name: For people.
        version: Of the format that it writes, and the newest that it reads.
        without_later: Whether it is of before the columns that came without a new number.
        novel: Whether its runs have the column `novelty`.
    """

    name: str
    version: int
    without_later: bool = False
    novel: bool = False

    @property
    def reader(self) -> Program:
        """What reads in its place: how the first program read is not known any more."""
        return PRESENT if self.without_later else self

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Be this program meanwhile."""
        schemas = {kind: self._schema(known) for kind, known in _SCHEMAS.items()}
        with contextlib.ExitStack() as stack:
            for kind, name in _NAMES.items():
                stack.enter_context(mock.patch.object(schema, name, schemas[kind]))
            stack.enter_context(mock.patch.dict(parts._COLUMNS, schemas))
            for module in (schema, parts):
                stack.enter_context(mock.patch.object(module, "SCHEMA_VERSION", self.version))
            stack.enter_context(mock.patch.object(folder, "build_table", self._build_table))
            stack.enter_context(mock.patch.object(attempts, "FakeLauncher", self._launcher))
            stack.enter_context(mock.patch.object(fake_sweep, "ESTIMATORS", self.name))
            yield

    def become(self) -> None:
        """Be this program from now on, in a child that ends soon."""
        _FOR_EVER.enter_context(self.running())

    @property
    def _launcher(self) -> type[FakeLauncher]:
        return FakeLauncher if self.without_later else FullLauncher

    def _schema(self, known: pa.Schema) -> pa.Schema:
        if self.without_later:
            known = pa.schema([field for field in known if field.name in _FIRST_COLUMNS])
        return known.append(NOVELTY) if self.novel and "run_key" in known.names else known

    def _build_table(
        self, rows: Sequence[Mapping[str, Any]], columns: pa.Schema, kind: str, notes: Mapping[str, Any] | None = None
    ) -> pa.Table:
        if self.novel and kind == "run":
            rows = [{**row, NOVELTY.name: 0.25 + row["repeat"]} for row in rows]
        table = _BUILD_TABLE(rows, columns, kind, notes)
        metadata = dict(table.schema.metadata)
        if self.without_later:
            del metadata[_NOTES_HASH]
        return table.replace_schema_metadata(metadata)


FIRST = Program("the first program", 1, without_later=True)
PRESENT = Program("the present program", 1)
NEXT = Program("the next program", 2, novel=True)
PROGRAMS = (FIRST, PRESENT, NEXT)


class FullLauncher(FakeLauncher):
    """Answers with values in the columns that came later as well."""

    def run(self, task: Any, argument: dict[str, Any], *, listen: Any = None, log: Any = None, **named: Any) -> Answer:
        """What a worker of today would have answered."""

        def listen_to_all(news: dict[str, Any]) -> None:
            more = {"estimated_device_low_bytes": 3, "estimated_fit": "fits"}
            listen({**news, "estimate": {**news["estimate"], **more}})

        heard = listen_to_all if task is estimate_task else listen
        answer = super().run(task, argument, listen=heard, log=log, **named)
        if task is measure_task:
            answer.value.update(
                gradient_noise_scale=64.0 + argument["repeat"],
                gradient_noise_steps=4,
                gradient_noise_note="made up",
                gradient_noise_g2_values=[0.5, -0.25],
            )
        return answer


def write_newer(model: Path, kind: str, target: Path, version: int) -> None:
    """A part of a newer format at `target`, with a hash that fits, made after the part `model`.

    It has a column more, and is of a run or a machine that nobody else has, so that it repeats nothing.
    """
    table = pq.ParquetFile(model).read()
    other = {"run": {"run_key": "f" * 16, "repeat": 77}, "plan": {"environment_key": "f" * 16}, "estimates": {}}[kind]
    rows = [{**row, **other, "from_the_future": 0.5} for row in table.to_pylist()]
    columns = table.schema.append(pa.field("from_the_future", pa.float64()))
    made = pa.Table.from_pylist(rows, schema=columns)
    metadata = {
        **raw_metadata(model),
        b"bench.schema_version": str(version).encode(),
        b"bench.sha256": rows_hash(made.to_pylist()).encode(),
    }
    write(target, made.replace_schema_metadata(None), metadata)


def raw_metadata(path: Path) -> dict[bytes, bytes]:
    """What a part says beside its rows, read without the harness."""
    metadata = pq.read_metadata(path).metadata
    return {key: value for key, value in metadata.items() if key.startswith(b"bench.")}
