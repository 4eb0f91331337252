"""The columns of the parts, read off the record types so that each field has one home.

History of the format (the number stands in each file's metadata as `bench.schema_version`):

* 1 (0.1.0): plan, runs and estimates as below. Columns came later that older parts do not have, and read as null:
  `target_interval` and `estimate_key` in plans, `data_classes`, `data_samples` and `data_hash` in plans and runs,
  the switches of a case (`bench.records.SWITCHES`), which then read as their defaults, in plans and runs,
  `gradient_noise`, `gradient_noise_*`, `nvml_error`, `in_process`, `compilation_s`, `allocator_in_force`,
  `device_memory_bytes`, `device_memory_allowed_bytes`, `spread`, `cpu_slot`, `parallel`, `pinned_cpus`,
  `neighbour_slowdown_frac`, `lost_tries`, `niceness`, `timm_version`, `gpu_memory_limit_bytes`, `device_memory_kind`,
  `device_memory_note`, `xpu_version`, `power_window_w`, `power_sample_count`, `batch_made_times_s`,
  `workload_power_profiles`, `edpp_multiplier_frac`, `adaptive_tgp`, `adaptive_tgp_limit_w`, `power_smoothing`,
  `application_clocks`, `confidential_computing`, `mps`, `gpu_settings_note`, `performance_state_end`,
  `host_others_window_frac`, `stolen_window_s`, `involuntary_switches`, `quota_wait_window_s`, `cpu_clock_start_hz`
  and `cpu_clock_end_hz` in runs,
  `estimated_device_low_bytes`, `estimated_device_high_bytes`, `estimated_device_basis`, `estimated_fit`,
  `estimated_samples_per_s_low`, `estimated_samples_per_s_high`, `estimated_speed_basis`, `step_flop`, `peak_flop_per_s`
  and `least_step_time_s` in estimates.
  Orders came later, a kind of part of their own.
  A hash of a part's notes (`bench.notes_sha256` in its metadata) came later as well; without it they are not checked.
"""

from __future__ import annotations

import types
import typing
from typing import Any

import pyarrow as pa

from bench.records import AXES, FIELDS, DataFacts, Environment, Estimate, Group, Measurement, Protocol, Status, columns

SCHEMA_VERSION = 1

_SCALARS = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string(), Status: pa.string()}


def _arrow_type(hint: Any) -> pa.DataType:
    """The Arrow type of a field's annotation."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _arrow_type(next(item for item in arguments if item is not type(None)))
    if origin is tuple:
        return pa.list_(_arrow_type(arguments[0]))
    return pa.string() if origin is typing.Literal else _SCALARS[hint]


def _fields(record: type) -> list[pa.Field]:
    hints = typing.get_type_hints(record)
    return [pa.field(name, _arrow_type(hints[name])) for name in columns(record) if FIELDS[name].stored]


_WHOLE_AXES = ("batch_size", "image_size", "accumulation")
_CASE = [
    pa.field("case_key", pa.string()),
    *(pa.field(axis, pa.int64() if axis in _WHOLE_AXES else pa.string()) for axis in AXES),
]
_GROUP = [pa.field(name, pa.string()) for name in columns(Group)]
_TURN = [pa.field("repeat", pa.int64()), pa.field("position", pa.int64())]

PLAN = pa.schema(
    [*_CASE, *_TURN, pa.field("skip_reason", pa.string()), *_GROUP, pa.field("target_interval", pa.float64())]
    + [pa.field("estimate_key", pa.string()), *_fields(DataFacts)]
)
RUN = pa.schema(
    [pa.field("run_key", pa.string()), *_CASE, *_TURN, pa.field("attempt", pa.int64()), *_GROUP]
    + [*_fields(DataFacts), *_fields(Measurement), *_fields(Protocol), *_fields(Environment)]
)
ORDER = pa.schema(
    [*_CASE, *_TURN, pa.field("skip_reason", pa.string()), pa.field("code_key", pa.string())]
    + [pa.field("case_code_key", pa.string()), pa.field("data_source", pa.string()), *_fields(DataFacts)]
)
"""The runs of a plan before any machine is known, for launchers that start each of them somewhere else."""
ESTIMATE = pa.schema([pa.field("estimate_key", pa.string()), *_fields(Estimate)])
