"""How `schema-1` was made, once: `python -m tests.data.make_schema_1`. It refuses to touch what is there.

`first` has the columns of the first files of format 1; `later` has those that came without a new number as well; `newer`
says that it is of format 2. A change of the format gets a script and a folder of its own beside these.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bench.store.parts import rows_hash
from tests.results import GPU, make_cases, make_results

HERE = Path(__file__).parent / "schema-1"
LATER = (
    "target_interval",
    "gradient_noise",
    "estimated_device_low_bytes",
    "estimated_device_high_bytes",
    "estimated_device_basis",
    "estimated_speed_basis",
)


def came_later(name: str) -> bool:
    return name in LATER or name.startswith("gradient_noise_")


def rewrite(path: Path, *, without_later: bool, version: bytes = b"1") -> None:
    """As the code of then wrote it: fewer columns, no hash of the notes."""
    table = pq.read_table(path)
    if without_later:
        table = table.drop_columns([name for name in table.column_names if came_later(name)])
    metadata = {
        **table.schema.metadata,
        b"bench.schema_version": version,
        b"bench.sha256": rows_hash(table.to_pylist()).encode(),
    }
    if without_later:
        metadata.pop(b"bench.notes_sha256", None)
    write(path, table, metadata)


def write(path: Path, table: pa.Table, metadata: dict[bytes, bytes]) -> None:
    with pq.ParquetWriter(
        path,
        table.schema,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        store_schema=False,
        write_page_checksum=True,
    ) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(metadata)


def main() -> None:
    if HERE.exists():
        raise SystemExit(f"{HERE} is there; files of the past do not change")
    cases = make_cases(("mnist",), ("mlp",), ("sgd",), (16, 64))
    for name in ("first", "later", "newer"):
        folder = make_results(HERE / name, cases, environment=GPU, repeats=1, trace=True)
        (folder / "logs").rmdir()
        for path in folder.rglob("*.parquet"):
            rewrite(path, without_later=name == "first", version=b"2" if name == "newer" else b"1")


if __name__ == "__main__":
    main()
