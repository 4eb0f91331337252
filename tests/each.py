"""One test over many values, where a check costs less than what pytest spends on a test of its own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

Test = Callable[..., None]


def each(names: str, values: Iterable[Any] | Callable[[], Iterable[Any]]) -> Callable[[Test], Test]:
    """Run a test for every value, like `pytest.mark.parametrize`, but as a single test that names all values it fails for.

    Args:
        names: The parameter that takes the value; several, separated by commas, take the items of a tuple.
        values: What to run for, or a function that is called for it when the test runs.

    Raises:
        ExceptionGroup: What failed, each with a note of its value.
        AssertionError: There is no value.
    """
    parameters = [name.strip() for name in names.split(",")]

    def decorate(test: Test) -> Test:
        @functools.wraps(test)
        def run_all(**fixtures: Any) -> None:
            failures: list[Exception] = []
            found = list(values() if callable(values) else values)
            assert found, f"no {names} to run for"
            for value in found:
                items = value if len(parameters) > 1 else (value,)
                try:
                    test(**dict(zip(parameters, items, strict=True)), **fixtures)
                except Exception as error:  # noqa: BLE001 - told of every value, not of the first
                    error.add_note(f"{names} = {value!r}")
                    failures.append(error)
            if failures:
                raise ExceptionGroup(f"{len(failures)} of {len(found)}", failures)

        signature = inspect.signature(test)
        others = [one for name, one in signature.parameters.items() if name not in parameters]
        run_all.__signature__ = signature.replace(parameters=others)  # type: ignore[attr-defined]
        return run_all

    return decorate
