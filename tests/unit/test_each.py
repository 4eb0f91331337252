"""One test over many values fails where one of them does, and says for which."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.each import each


@each("number, square", [(1, 1), (2, 4)])
def test_fixtures_stand_beside_the_values(number: int, square: int, tmp_path: Path) -> None:
    assert number * number == square
    assert tmp_path.is_dir()


def test_every_value_that_fails_is_named_and_the_others_are_tried() -> None:
    tried = []

    @each("number", lambda: (1, 2, 3))
    def check(number: int) -> None:
        tried.append(number)
        assert number == 2

    with pytest.raises(ExceptionGroup, match="2 of 3") as caught:
        check()
    assert tried == [1, 2, 3]
    assert [error.__notes__ for error in caught.value.exceptions] == [["number = 1"], ["number = 3"]]


def test_no_value_is_a_failure_too() -> None:
    @each("number", ())
    def check(number: int) -> None: ...

    with pytest.raises(AssertionError, match="no number to run for"):
        check()
