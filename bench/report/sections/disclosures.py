"""What was underneath: machine, software and protocol; absent reads unknown."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from bench.analysis import machine_labels
from bench.records import Environment, Protocol, columns
from bench.report.blocks import Block, Fold, Paragraph, Strong, Table, Words
from bench.report.contents import Contents, Section
from bench.report.words import field_title, field_words

_MAX_MACHINES = 6
_MAX_COMMIT = 12
_MAIN = (
    "gpu_name",
    "gpu_count",
    "gpu_total_bytes",
    "driver_version",
    "power_limit_w",
    "power_limit_default_w",
    "ecc",
    "mig",
    "cuda_version",
    "cudnn_version",
    "torch_version",
    "torchvision_version",
    "python_version",
    "allocator_settings",
    "speed_variables",
    "cpu_model",
    "cpu_cores_usable",
    "cpu_capability",
    "torch_threads",
    "cpu_governor",
    "ram_bytes",
    "memory_limit_bytes",
    "os_name",
    "kernel",
    "container",
    "virtualization",
    "bench_version",
    "git_commit",
    "git_dirty",
)
_WHERE_SAID = ("other_variables",)
"""What results of earlier versions never say: its absence tells nothing."""

_ABSENT = {"threads": "torch's default"}
"""What absence means, of the fields where it is not unknown."""

_OF_GPUS = (
    "gpu_",
    "vbios",
    "driver_version",
    "ecc",
    "mig",
    "persistence_mode",
    "power_limit",
    "max_sm_clock",
    "cuda_version",
    "cudnn_version",
    "torch_arch_list",
)
_RANGES = (
    "temperature_start_c",
    "temperature_end_c",
    "sm_clock_start_hz",
    "sm_clock_end_hz",
    "power_end_w",
    "host_memory_limit_bytes",
    "pcie_generation",
    "pcie_width",
    "other_process_count",
)


def build(contents: Contents) -> Sequence[Block]:
    """The environment as a table, the protocol, what the device did, and the rest folded away."""
    machines = contents.frame.drop_duplicates("environment_key")
    labels = machine_labels(contents.frame)
    shown = machines.head(_MAX_MACHINES)
    head = ["", *(labels[key] for key in shown["environment_key"])]
    fields = [name for name in columns(Environment) if not (contents.cpu_only and name.startswith(_OF_GPUS))]
    main = [name for name in fields if name in _MAIN]
    rest = [name for name in fields if name not in _MAIN and name in machines]
    rest = [name for name in rest if name not in _WHERE_SAID or machines[name].notna().any()]
    blocks: list[Block] = [_table(head, shown, main, "The machine and its software.")]
    if contents.cpu_only:
        blocks.append(Paragraph("No GPU was used; GPU fields are omitted."))
    if len(machines) > _MAX_MACHINES:
        blocks.append(Paragraph(f"{len(machines) - _MAX_MACHINES} more environments are in the Parquet files."))
    protocols = contents.frame.drop_duplicates("protocol_key").head(_MAX_MACHINES)
    names = [name for name in columns(Protocol) if name in protocols]
    heads = ["", *(["value"] if len(protocols) == 1 else [f"protocol {n}" for n in range(1, len(protocols) + 1)])]
    blocks.append(_table(heads, protocols, names, "How every run measured."))
    blocks.append(Fold("Everything else that was recorded", [_table(head, shown, rest, ""), *_ranges(contents.frame)]))
    return blocks


def _table(head: Sequence[str], rows: pd.DataFrame, names: Sequence[str], caption: str) -> Table:
    """One row a field, one column an environment or protocol; a single one is set in two halves beside each other."""
    cells: list[list[str]] = []
    for name in names:
        values = [field_words(name, value) for value in rows[name]]
        values = [value[:_MAX_COMMIT] for value in values] if name == "git_commit" else values
        absent = _ABSENT.get(name, "unknown")
        cells.append([field_title(name), *(absent if value == "unknown" else value for value in values)])
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
    for name in _RANGES:
        values = frame[name].dropna()
        if len(values):
            low, high = field_words(name, values.min()), field_words(name, values.max())
            cells.append([field_title(name), low if low == high else f"{low} to {high}"])
    return [Table(["", "over all runs"], cells, caption="Readings of the device and the host.")] if cells else []


SECTION = Section(order=30, title="Machine and protocol", build=build)
