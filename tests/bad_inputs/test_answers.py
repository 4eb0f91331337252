"""Every bad input gets its whole answer: a sentence, an exit code, never a traceback.

After a change of words: python -m tests.bad_inputs.answers, and read what changed in answers.toml.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bad_inputs.answers import answer_to, clean, inputs, load_answers
from tests.bad_inputs.places import make_places

ANSWERS = load_answers()
CLICKS_OWN = re.compile(r"Error: (No such option|Got unexpected|Invalid value for|Missing argument)")
"""Messages that click words, differently from version to version; that they come at all is held, with their exit code."""


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
    if says and CLICKS_OWN.match(says[0]):
        assert said[0].partition(":")[0] == "Error"
    else:
        assert said == says


def test_every_input_has_its_answer_and_there_are_at_least_200() -> None:
    listed = list(inputs())
    assert {(kind, name) for kind, table in ANSWERS.items() for name in table} == set(listed)
    assert len(listed) >= 300


def test_no_answer_names_a_place_of_the_machine_or_speaks_python() -> None:
    words = re.compile(
        r"Traceback|site-packages|/tmp/|/home/|Input should|Value error|errno|\bNone\b|\bTrue\b|\bFalse\b|<class|Error\("
    )
    spoken = [
        (kind, name, line)
        for kind, table in ANSWERS.items()
        for name, answer in table.items()
        for line in answer["says"]
    ]
    assert [item for item in spoken if words.search(item[2])] == []
    assert [name for table in ANSWERS.values() for name, answer in table.items() if not answer["says"]] == []
