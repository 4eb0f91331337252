"""The registry of fields has an entry for each column of each record, and for nothing else."""

from __future__ import annotations

import dataclasses
import typing

import bench.records
from bench.records import FIELDS, RECORDS, Choice, Field, ImageSpec, Protocol, unit_of
from bench.records.fields import entries
from bench.store.schema import ESTIMATE, PLAN, RUN
from tests.each import each

NO_RECORDS = {Choice, Field, ImageSpec}
ADDED_BY_THE_STORE = {"run_key", "attempt", "target_interval", "estimate_key"}
NOISE = {f"gradient_noise_{name}" for name in ("scale", "g2", "trace", "g2_values", "trace_values")}
WITHOUT_UNIT = {"final_loss", *NOISE}  # numbers of a loss, which has none


def declared_columns(record: type) -> set[str]:
    hints = typing.get_type_hints(record)
    return {one.name for one in dataclasses.fields(record) if hints[one.name] not in RECORDS}


def test_every_record_is_registered() -> None:
    types = {item for item in vars(bench.records).values() if isinstance(item, type) and dataclasses.is_dataclass(item)}
    assert types - NO_RECORDS == set(RECORDS)


def test_the_registry_has_the_columns_of_the_records_and_no_others() -> None:
    assert set(FIELDS) == set().union(*map(declared_columns, RECORDS))
    assert all(name == field.name for name, field in FIELDS.items())


def test_what_is_stored_is_what_the_registry_says() -> None:
    stored = {name for schema in (PLAN, RUN, ESTIMATE) for name in schema.names}
    assert stored - ADDED_BY_THE_STORE == {name for name, field in FIELDS.items() if field.stored}


@each("record", RECORDS)
def test_a_column_of_two_records_has_its_attributes_in_the_registry(record: type) -> None:
    for name, entry in entries(record).items():
        plain = Field(name=name, group=entry.group, title=entry.title)
        assert name not in FIELDS or entry in (FIELDS[name], plain)


def test_a_change_of_the_protocol_makes_another_key() -> None:
    assert all(entry.key for entry in entries(Protocol).values() if entry.stored)


@each("record", RECORDS)
def test_fractional_columns_say_their_unit(record: type) -> None:
    hints = typing.get_type_hints(record)
    floats = {name for name in entries(record) if float in (hints[name], *typing.get_args(hints[name]))}
    assert {name for name in floats if not unit_of(name)} <= WITHOUT_UNIT


def test_places_are_of_fields_that_can_have_them() -> None:
    for field in FIELDS.values():
        assert not (field.first and field.kind is None), f"{field.name} is not compared"
        assert not (field.label and field.group != "environment"), f"{field.name} is not of a machine"
        assert not (field.needed and field.helpful), f"{field.name} is needed or helpful"
        assert field.within is None or unit_of(field.name), f"{field.name} has no unit"
