"""What cases and machines are called in reports: as short as they can be told apart by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bench.records import absent_word

Row = Mapping[Any, Any]
"""A row of a summary, as `to_dict("records")` gives it."""

SERIES_AXES = ("machine", "optimizer", "precision", "memory_format", "input", "image_size", "protocol", "code")
"""What can set two cases apart beside model, data set and batch size."""

_MACHINE_FIELDS = (
    "torch_version", "driver_version", "cuda_version", "cudnn_version", "power_limit_w", "torchvision_version",
    "python_version", "allocator_settings", "speed_variables", "cpu_cores_usable", "ram_bytes", "mig", "gpu_uuid_hash",
    "host_hash",
)  # fmt: skip
_PROTOCOL_FIELDS = (
    "warmup_steps", "measured_steps", "min_window_s", "seed", "loader_workers", "threads", "cudnn_benchmark",
    "deterministic", "compiled", "gradient_noise",
)  # fmt: skip
_ORDERS = {
    "precision": ("float32", "tf32", "bf16", "fp16"),
    "memory_format": ("contiguous", "channels_last"),
    "input": ("synthetic", "cached", "loader"),
}


def machine_labels(frame: pd.DataFrame) -> dict[str, str]:
    """A name for each environment key, in order of appearance: the GPU's or the CPU's, and what tells equals apart."""
    rows = frame.drop_duplicates("environment_key").set_index("environment_key")
    names = dict(zip(rows.index.astype(str), map(_device_name, rows.to_dict("records")), strict=True))
    return _told_apart(rows, names, _MACHINE_FIELDS)


def protocol_labels(frame: pd.DataFrame) -> dict[str, str]:
    """A name for each protocol key: what differs between the protocols, or nothing where there is one."""
    rows = frame.drop_duplicates("protocol_key").set_index("protocol_key")
    return _told_apart(rows, {str(key): "" for key in rows.index}, _PROTOCOL_FIELDS)


def unit_label(row: Row) -> str:
    """Model and data set of a case: `mlp on mnist`."""
    return f"{row['model']} on {row['dataset']}"


def case_label(row: Row, axes: Sequence[str] = ()) -> str:
    """A case in words: model, data set, batch size, and its values on `axes`."""
    words = [unit_label(row), f"batch {row['batch_size']}", *(axis_words(axis, row[axis]) for axis in axes)]
    return ", ".join(word for word in words if word)


def axis_words(axis: str, value: Any) -> str:
    """One axis value in words; a bare number gets its axis's name."""
    return f"{value} px" if axis == "image_size" else str(value)


def varying_axes(frame: pd.DataFrame) -> list[str]:
    """Those of `SERIES_AXES` on which the rows of a unit (model and data set) or whole sweeps differ."""
    found = []
    for axis in SERIES_AXES:
        if axis not in frame:
            continue
        within = frame.groupby(["model", "dataset"])[axis].nunique(dropna=False)
        if len(within) and (within > 1).any():
            found.append(axis)
    return found


def sort_cases(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows in the order of a reader: machine, data set, model, the other axes in their natural order, batch size."""
    keys = pd.DataFrame(index=frame.index)
    for axis in ("machine", "dataset", "model", "optimizer", "precision", "memory_format", "input"):
        known = _ORDERS.get(axis, tuple(dict.fromkeys(frame[axis])) if axis == "machine" else ())
        keys[axis] = [(known.index(value) if value in known else len(known), str(value)) for value in frame[axis]]
    for axis in ("image_size", "protocol", "code", "batch_size"):
        keys[axis] = frame[axis]
    order = keys.sort_values(list(keys.columns), kind="stable").index
    return frame.loc[order].reset_index(drop=True)


def _device_name(row: Row) -> str:
    if row["device"] == "cpu":
        return f"{row['cpu_model']} (CPU)" if pd.notna(row["cpu_model"]) else "CPU of unknown model"
    return str(row["gpu_name"]) if pd.notna(row["gpu_name"]) else f"{row['device']} of unknown model"


def _told_apart(rows: pd.DataFrame, names: dict[str, str], fields: Sequence[str]) -> dict[str, str]:
    """Names made distinct by the first field that differs between rows of the same name, or by a number."""
    labels: dict[str, str] = {}
    for key, name in names.items():
        twins = [other for other in names if names[other] == name]
        label = name
        if len(twins) > 1:
            field = next((item for item in fields if rows.loc[twins, item].nunique(dropna=False) == len(twins)), None)
            told = f"no. {twins.index(key) + 1}"
            if field:
                value = rows[field].to_dict()[key]
                told = f"{field.removesuffix('_version')} {value if pd.notna(value) else absent_word(field)}"
            label = f"{name}, {told}" if name else str(told)
        labels[key] = label
    return labels
