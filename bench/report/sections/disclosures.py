"""What was underneath: machine, software and protocol; absent reads unknown."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from bench.analysis import machine_labels
from bench.records import FIELDS, Environment, Protocol, columns, in_order
from bench.report.blocks import Block, Fold, Paragraph, Strong, Table, Words
from bench.report.contents import Contents, Section
from bench.report.words import field_words

_MAX_MACHINES = 6
_MAX_COMMIT = 12


def build(contents: Contents) -> Sequence[Block]:
    """The environment as a table, the protocol, what the device did, and the rest folded away."""
    machines = contents.frame.drop_duplicates("environment_key")
    labels = machine_labels(contents.frame)
    shown = machines.head(_MAX_MACHINES)
    head = ["", *(labels[key] for key in shown["environment_key"])]
    fields = [name for name in columns(Environment) if not (contents.cpu_only and FIELDS[name].gpu)]
    main = _without_unknown([name for name in fields if FIELDS[name].main], machines)
    rest = [name for name in fields if not FIELDS[name].main and name in machines]
    rest = _without_unknown(rest, machines)
    blocks: list[Block] = [_table(head, shown, main, "The machine and its software.")]
    if contents.cpu_only:
        blocks.append(Paragraph("No GPU was used; GPU fields are omitted."))
    if len(machines) > _MAX_MACHINES:
        blocks.append(Paragraph(f"{len(machines) - _MAX_MACHINES} more environments are in the Parquet files."))
    protocols = contents.frame.drop_duplicates("protocol_key").head(_MAX_MACHINES)
    names = _without_unknown([name for name in columns(Protocol) if name in protocols], protocols)
    heads = ["", *(["value"] if len(protocols) == 1 else [f"protocol {n}" for n in range(1, len(protocols) + 1)])]
    blocks.append(_table(heads, protocols, names, "How every run measured."))
    blocks.append(Fold("Everything else that was recorded", [_table(head, shown, rest, ""), *_ranges(contents.frame)]))
    return blocks


def _without_unknown(names: Sequence[str], rows: pd.DataFrame) -> list[str]:
    """The fields without those that are left out where no row has them."""
    return [name for name in names if not FIELDS[name].if_known or rows[name].notna().any()]


def _table(head: Sequence[str], rows: pd.DataFrame, names: Sequence[str], caption: str) -> Table:
    """One row a field, one column an environment or protocol; a single one is set in two halves beside each other."""
    cells: list[list[str]] = []
    for name in names:
        values = [field_words(name, value) for value in rows[name]]
        values = [value[:_MAX_COMMIT] for value in values] if name == "git_commit" else values
        cells.append([FIELDS[name].title, *values])
    if len(rows) > 1:
        return _side_by_side(head, cells, caption)
    if len(cells) < 6:
        return Table(list(head), cells, caption=caption)
    half = (len(cells) + 1) // 2
    right = [*cells[half:], ["", ""]][:half]
    return Table(
        [*head, "", ""], [[*one, *other] for one, other in zip(cells[:half], right, strict=True)], caption=caption
    )


def _side_by_side(head: Sequence[str], cells: Sequence[Sequence[str]], caption: str) -> Table:
    """A column each; the fields that differ stand out, in words where there is no colour."""
    differs = [len(set(values)) > 1 for _, *values in cells]
    rows: list[list[Words]] = [
        [(Strong(text),) for text in row] if apart else list(row) for row, apart in zip(cells, differs, strict=True)
    ]
    said = f"{sum(differs)} of {len(cells)} fields differ, in bold; unknown against a value differs too."
    levels = ["differs" if apart else "" for apart in differs]
    return Table(list(head), rows, caption=f"{caption} {said}".strip(), row_levels=levels)


def _ranges(frame: pd.DataFrame) -> list[Block]:
    """What changes from run to run, from the smallest to the largest."""
    cells = []
    for name in in_order(lambda field: field.reading):
        values = frame[name].dropna()
        if len(values):
            low, high = field_words(name, values.min()), field_words(name, values.max())
            cells.append([FIELDS[name].title, low if low == high else f"{low} to {high}"])
    return [Table(["", "over all runs"], cells, caption="Readings of the device and the host.")] if cells else []


SECTION = Section(order=55, title="Machine and protocol", build=build)
