"""A case's name on the command line and the case itself are two spellings of one thing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bench.catalog import parse_choice
from bench.records import Choice

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30) | st.sampled_from(
    ["true", "1", "a,b", "/tmp/a,b", "[1]", '"', "x=y", "nan", "/plain/path", " padded ", "back\\slash"]
)


@given(TEXT)
def test_a_data_set_with_any_path_reads_back_as_it_was(path: str) -> None:
    choice = Choice.of("folder", {"path": path})
    assert parse_choice("dataset", str(choice)) == choice


@given(st.integers(1, 10_000) | st.lists(st.integers(1, 10_000), min_size=1, max_size=4))
def test_a_model_with_any_sizes_reads_back_as_it_was(hidden: int | list[int]) -> None:
    choice = parse_choice("model", f"mlp:hidden={hidden}")
    assert parse_choice("model", str(choice)) == choice


@given(st.booleans(), st.floats(1e-6, 10, allow_nan=False))
def test_an_optimizer_with_any_settings_reads_back_as_it_was(foreach: bool, lr: float) -> None:
    choice = Choice.of("adam", {"foreach": foreach, "lr": lr})
    assert parse_choice("optimizer", str(choice)) == parse_choice(
        "optimizer", str(parse_choice("optimizer", str(choice)))
    )
