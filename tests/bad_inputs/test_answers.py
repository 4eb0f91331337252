"""Every bad input gets its answer: an exit code, a place and the key nouns of each line, and never a traceback.

After a change of an answer: python -m tests.bad_inputs.answers, and read what it prints and what changed in answers.toml.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bad_inputs.answers import answer_to, clean, inputs, load_answers, lost
from tests.bad_inputs.places import make_places

ANSWERS = load_answers()
CLICKS_OWN = re.compile(r"Error: (No such option|Got unexpected|Invalid value for|Missing argument)")
"""Messages that click words, differently from version to version; that they come at all is held, with their exit code."""

PYTHON_OR_PLACE = re.compile(
    r"Traceback|site-packages|/tmp/|/home/|Input should|Value error|errno|\bNone\b|\bTrue\b|\bFalse\b|<class|Error\("
)
"""What no answer may hold: a place of the machine, or Python's words."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("places")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_places()
    return folder


@pytest.fixture
def here(places: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(places)
    yield places
    clean()


@pytest.mark.parametrize(("kind", "name"), list(inputs()), ids=[f"{kind}: {name}" for kind, name in inputs()])
def test_a_bad_input_gets_its_answer(here: Path, kind: str, name: str) -> None:
    expected, found = ANSWERS[kind][name], answer_to(kind, name)
    assert found["exit"] == expected["exit"]
    says, said = list(expected["says"]), list(found["says"])
    assert said
    assert [line for line in said if PYTHON_OR_PLACE.search(line)] == []
    if CLICKS_OWN.match(said[0]):
        assert [line.partition(":")[0] for line in said] == ["Error"] == [line[0].partition(":")[0] for line in says]
    else:
        assert len(said) == len(says), said
        assert [lost(nouns, line) for nouns, line in zip(says, said, strict=True)] == [[]] * len(says), said


def test_every_input_has_its_answer_and_there_are_at_least_300() -> None:
    listed = list(inputs())
    assert {(kind, name) for kind, table in ANSWERS.items() for name in table} == set(listed)
    assert len(listed) >= 300


def test_every_answer_holds_what_tells_a_wrong_one_apart() -> None:
    lines = [line for table in ANSWERS.values() for answer in table.values() for line in answer["says"]]
    assert [line for line in lines if len(line) < 2 and not line[0].startswith("Error")] == []


@pytest.mark.parametrize(
    ("wrong", "missing"),
    [
        (
            'in.toml: grid.model[1]: unknown model "mpl". Nearest: mlp. List them: bench list models',
            ["in.toml: grid.model[0]:"],
        ),
        ('in.toml: grid.model[0]: unknown model "mlp". Nearest: mlp. List them: bench list models', ['"mpl"']),
        ('in.toml: grid.model[0]: unknown model "mpl". List them: bench list models', ["Nearest: mlp"]),
        ('in.toml: grid.model[0]: unknown model "mpl". Nearest: mlp. See bench list datasets', ["bench list models"]),
        (
            'in.toml: grid.model[0]: no model is called "mpl", it is unknown. bench list models has them. Nearest: mlp',
            [],
        ),
    ],
)
def test_a_wrong_place_value_or_remedy_is_found_and_other_words_are_not(wrong: str, missing: list[str]) -> None:
    expected = ["in.toml: grid.model[0]:", "unknown", "model", '"mpl"', "Nearest: mlp", "bench list models"]
    assert lost(expected, f"error: {wrong}") == missing
