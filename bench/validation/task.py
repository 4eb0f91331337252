"""The task of the child."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any


def validate_task(argument: dict[str, Any], send: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Estimate the `rows` of a file, with `workspaces` or without; sends `{"estimated": fields of Estimated}` each."""
    from bench.validation.estimating import estimate_rows

    for estimated in estimate_rows(argument["rows"], argument["workspaces"]):
        send({"estimated": asdict(estimated)})
    return {}
