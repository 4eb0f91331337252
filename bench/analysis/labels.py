"""What cases and machines are called in reports: as short as they can be told apart by."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, get_args

import pandas as pd

from bench import records
from bench.devices import card_name
from bench.records import (
    FIELDS,
    SWITCHES,
    Environment,
    InputPath,
    MemoryFormat,
    Precision,
    Protocol,
    axis_words,
    columns,
    in_order,
)
from bench.units import exact_bytes

Row = Mapping[Any, Any]
"""A row of a summary, as `to_dict("records")` gives it."""

SERIES_AXES = (
    *("machine", "optimizer", "precision", "memory_format", "input", "image_size", *SWITCHES),
    *("protocol", "code"),
)
"""What can set two cases apart beside model, data set and batch size."""

PLAIN = "as it is"
"""What a case is called whose switches are all left alone, beside others whose are not."""

_NAME_CHARACTERS = 60
"""Of a model, data set or optimizer in a label; longer ones (a folder's path, many settings) are cut."""

_ORDERS = {"precision": get_args(Precision), "memory_format": get_args(MemoryFormat), "input": get_args(InputPath)}


def machine_labels(frame: pd.DataFrame) -> dict[str, str]:
    """A name for each environment key, in order of appearance: the GPU's or the CPU's, and what tells equals apart.

    A GPU that played a smaller card in all of its runs is named as that card.
    """
    rows = frame.drop_duplicates("environment_key").set_index("environment_key")
    names = dict(zip(rows.index.astype(str), map(device_name, rows.to_dict("records")), strict=True))
    if "device_memory_bytes" in frame:
        for key, limits in frame.groupby("environment_key")["device_memory_bytes"]:
            if limits.nunique(dropna=False) == 1 and limits.notna().all():
                names[str(key)] = card_name(names[str(key)], int(limits.iloc[0]))
    return _told_apart(rows, names, (*in_order(lambda field: field.label), *columns(Environment)))


def protocol_labels(frame: pd.DataFrame) -> dict[str, str]:
    """A name for each protocol key: what differs between the protocols, or nothing where there is one."""
    rows = frame.drop_duplicates("protocol_key").set_index("protocol_key")
    return _told_apart(rows, {str(key): "" for key in rows.index}, columns(Protocol))


class CaseLabels:
    """What the cases of one set are called wherever they are listed: no two alike.

    A label has model, data set and batch size, and the value of every further axis on which cases of one model and data
    set differ. Names that are long are cut where that leaves them different.

    Attributes:
        axes: Those further axes, of `SERIES_AXES`, in its order.
    """

    def __init__(self, rows: pd.DataFrame) -> None:
        """Take all the rows that are listed together, one a case: a summary, or a part of one."""
        known = {axis: rows[axis].tolist() for axis in ("model", "dataset", *SERIES_AXES) if axis in rows}
        self.axes = records.varying_axes(known, [axis for axis in SERIES_AXES if axis in known])
        self._short: dict[str, dict[str, str]] = {
            axis: cut_apart(map(str, dict.fromkeys(known[axis])), _NAME_CHARACTERS)
            for axis in ("model", "dataset", "optimizer")
            if axis in known
        }

    def words(self, row: Row, axis: str) -> str:
        """The value of one axis in words."""
        text = axis_words(axis, row[axis])
        return self._short.get(axis, {}).get(text, text)

    def unit(self, row: Row) -> str:
        """Model and data set of a case: `mlp on mnist`."""
        return f"{self.words(row, 'model')} on {self.words(row, 'dataset')}"

    def detail(self, row: Row, without: Collection[str] = ()) -> str:
        """What sets a case apart beside model, data set and batch size; empty where nothing does.

        Switches that are left alone are not named; where nothing else is either, the case is run `PLAIN`.
        """
        axes = [axis for axis in self.axes if axis not in without]
        told = (self.words(row, axis) for axis in axes if axis not in SWITCHES or row[axis] != SWITCHES[axis])
        return ", ".join(filter(None, told)) or (PLAIN if any(axis in SWITCHES for axis in axes) else "")

    def setting(self, row: Row) -> str:
        """How a model was trained, beside the machine: `batch 64, sgd, 224 px`."""
        return ", ".join(filter(None, (f"batch {row['batch_size']}", self.detail(row, without=("machine",)))))

    def case(self, row: Row) -> str:
        """A case in words: model, data set, batch size, and its values on the axes that differ."""
        return ", ".join(filter(None, (self.unit(row), f"batch {row['batch_size']}", self.detail(row))))


def cut_apart(texts: Iterable[str], characters: int) -> dict[str, str]:
    """Texts cut to so many characters, in the first of these ways in which no two become alike.

    Kept are the head; the head and the tail; the head and what follows the first difference; and, where none of these
    tells them apart, the whole text.
    """
    every = list(dict.fromkeys(texts))
    long = [text for text in every if len(text) > characters]
    differ = next((place for place, marks in enumerate(zip(*long, strict=False)) if len(set(marks)) > 1), 0)
    start = max((match.start() for match in re.finditer(r"[/,:]", long[0][:differ])), default=0) if long else 0
    third, rest = characters // 3, characters - characters // 3 - 2
    ways: tuple[Callable[[str], str], ...] = (
        lambda text: f"{text[: characters - 1]}…",
        lambda text: f"{text[:third]}…{text[-rest:]}",
        lambda text: f"{text[:third]}…{text[start : start + rest]}" + ("…" if len(text) > start + rest else ""),
        lambda text: text,
    )
    for way in ways:
        made = {text: way(text) if len(text) > characters else text for text in every}
        if len(set(made.values())) == len(every):
            break
    return made


def sort_cases(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows in the order of a reader: machine, data set, model, the other axes in their natural order, batch size."""
    keys = pd.DataFrame(index=frame.index)
    for axis in ("machine", "dataset", "model", "optimizer", "precision", "memory_format", "input", *SWITCHES):
        known = (SWITCHES[axis],) if axis in SWITCHES else _ORDERS.get(axis, ())
        known = tuple(dict.fromkeys(frame[axis])) if axis == "machine" else known
        keys[axis] = [(known.index(value) if value in known else len(known), str(value)) for value in frame[axis]]
    for axis in ("image_size", "protocol", "code", "batch_size"):
        keys[axis] = frame[axis]
    order = keys.sort_values(list(keys.columns), kind="stable").index
    return frame.loc[order].reset_index(drop=True)


def device_name(row: Row) -> str:
    """The model of the device that a run used."""
    if row["device"] == "cpu":
        return f"{row['cpu_model']} (CPU)" if pd.notna(row["cpu_model"]) else "CPU of unknown model"
    return str(row["gpu_name"]) if pd.notna(row["gpu_name"]) else f"{row['device']} of unknown model"


def _told_apart(rows: pd.DataFrame, names: dict[str, str], fields: Sequence[str]) -> dict[str, str]:
    """Names made distinct by the fewest of the first fields that differ between rows of the same name, or by a number.

    Args:
        rows: By key.
        names: By key; equal ones are to be told apart.
        fields: Columns of `rows`, the most telling first.
    """
    labels: dict[str, str] = {}
    for name in dict.fromkeys(names.values()):
        twins = rows.loc[[key for key, other in names.items() if other == name]]
        for number, (key, told) in enumerate(zip(twins.index, _telling(twins, fields), strict=True), 1):
            words = [] if len(twins) == 1 else told or [f"no. {number}"]
            labels[str(key)] = ", ".join(filter(None, (name, *words)))
    ordered = {key: labels[key] for key in names}
    if len(set(ordered.values())) < len(set(names)):  # a name that another one has become
        return {key: f"{label}, no. {number}" for number, (key, label) in enumerate(ordered.items(), 1)}
    return ordered


def _telling(twins: pd.DataFrame, fields: Sequence[str]) -> list[list[str]]:
    """For each row, the words that tell it from the others; empty lists where no fields do.

    One field that tells all apart is enough; otherwise those are taken that tell more rows apart than the ones before.
    """
    words = {
        field: [_field_words(field, value) for value in twins[field]]
        for field in dict.fromkeys(fields)
        if field in twins
    }
    alone = [field for field, values in words.items() if len(set(values)) == len(twins)]
    if alone:
        return [[word] for word in words[alone[0]]]
    chosen: list[list[str]] = [[] for _ in range(len(twins))]
    for values in words.values():
        wider = [[*told, word] for told, word in zip(chosen, values, strict=True)]
        if len(set(map(tuple, wider))) > len(set(map(tuple, chosen))):
            chosen = wider
    return chosen if len(set(map(tuple, chosen))) == len(twins) else [[] for _ in chosen]


def _field_words(field: str, value: Any) -> str:
    if value is None or value is pd.NA or value != value:
        told = FIELDS[field].absent
    else:
        told = exact_bytes(int(value)) if field.endswith("_bytes") else value
    return f"{field.removesuffix('_version').removesuffix('_bytes')} {told}"
