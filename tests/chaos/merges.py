"""Merging folders beside what is known of them: what must come of it, or why it must be refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bench.bundles import merge_results
from bench.errors import StoreError
from bench.store.parts import rows_hash
from tests.chaos.attempts import OUT
from tests.chaos.places import Place, plain
from tests.chaos.programs import Program, raw_metadata
from tests.data.make_schema_1 import write


def merge_places(folder: Path, sources: Sequence[Place], reader: Program) -> tuple[Place | None, str]:
    """Merge into `out` below `folder`.

    Args:
        folder: Not there yet.
        sources: In the order in which they are named.
        reader: The program that merges.

    Returns:
        The new place, or None and why the merge was refused, as it must be then: `newer`, `damaged` or `conflicting`.

    Raises:
        AssertionError: It was merged or refused wrongly, or not every run and plan is in what was made.
    """
    place = Place(folder)
    newer = {sentence for source in sources for sentence in source.newer(reader)}
    damaged = [str(path) for source in sources for path in source.damaged]
    clashes = _clashes(sources)
    try:
        with reader.running():
            merge_results(folder / OUT, [source.data for source in sources])
    except StoreError as error:
        said = str(error)
        why = ["newer"] * (said in newer) + ["damaged"] * any(said.startswith(f"{path}: ") for path in damaged)
        why += ["conflicting"] * any(f"two different runs under one key ({key})" in said for key in clashes)
        assert why, said
        assert not folder.exists() or not any(folder.iterdir()), "refused, and yet something was left"
        return None, why[0]
    assert not newer and not clashes and not damaged, "merged what must be refused"
    place.look()
    place.acknowledged = {*place.rows}
    for source in sources:
        for key, turns in source.planned.items():
            place.inherited[key] |= turns
    place.check(reader)
    return place, ""


def contradict(place: Place, stem: str) -> None:
    """Let a run say that it took longer, under a hash that fits."""
    path = place.data / "runs" / f"{stem}.parquet"
    table = pq.ParquetFile(path).read()
    rows = [{**row, "duration_s": row["duration_s"] + 1.0} for row in table.to_pylist()]
    metadata = {**raw_metadata(path), b"bench.sha256": rows_hash(rows).encode()}
    write(path, pa.Table.from_pylist(rows, schema=table.schema).replace_schema_metadata(None), metadata)
    place.rows[stem] = rows[0]


def _clashes(sources: Sequence[Place]) -> set[str]:
    """Keys of runs that two places tell differently; what is unknown in one and absent in the other is the same."""
    told: dict[str, set[str]] = {}
    for row in (row for place in sources for row in place.rows.values()):
        told.setdefault(row["run_key"], set()).add(json.dumps(plain(row), sort_keys=True))
    return {key for key, rows in told.items() if len(rows) > 1}
