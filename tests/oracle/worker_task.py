"""Run a case by the real worker under the stub, once for each set of the stub's settings, each in a fork.

The arguments are a JSON list of mappings (settings of the stub, upper case, without its prefix; `model`, `dataset` and
`task`, fields of a `MeasureTask`, are not the stub's). Prints a JSON list: the fields of each run's `Measurement`, or
`{"raised": ...}` where the worker raised.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from bench.records import Case, Choice, Protocol
from bench.worker import MeasureTask, measure_case

PROTOCOL = Protocol(warmup_steps=2, measured_steps=3, min_window_s=0.001)


def run(settings: Mapping[str, Any]) -> dict[str, Any]:
    """One case in this process."""
    given = dict(settings)
    axes = {name: Choice(given.pop(name, usual)) for name, usual in (("dataset", "mnist"), ("model", "mlp"))}
    case = Case(**axes, optimizer=Choice("sgd"), batch_size=8)
    task = MeasureTask(case, PROTOCOL, "cuda", **given.pop("task", {}))
    os.environ.update({f"BENCH_STUB_{name}": str(value) for name, value in given.items()})
    try:
        return measure_case(task, lambda news: None)
    except Exception as error:  # noqa: BLE001 - what the parent would be told
        return {"raised": f"{type(error).__name__}: {error}"}


def in_fork(settings: Mapping[str, Any]) -> dict[str, Any]:
    """One case in a fork of this process, which has torch loaded and CUDA untouched."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        with os.fdopen(writer, "w") as pipe:
            json.dump(run(settings), pipe, default=str)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return dict(json.loads(text or '{"raised": "died"}'))


if __name__ == "__main__":
    print(json.dumps([in_fork(settings) for settings in json.loads(sys.argv[1])]))
