"""Random edits of models: whether the guard reports exactly those that move the real peak, under the stub driver.

`python -m tests.oracle.guarded_edits --edits 200 --seed 1` prints what it found, a row a kind of edit; `test_guard_on_stub.py` has
the short form.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.api import outline
from bench.guard import Allowed, Change, Course, Guarded

from . import edits
from .stub import StubDriver, build_stub

DEVICE = "h200"
PER_MODEL = 10


@dataclass(frozen=True)
class Outcome:
    """One edit.

    Attributes:
        kind: Of the edit.
        before: Real peaks in bytes, without it.
        after: With it.
        change: What the guard says.
    """

    kind: str
    before: dict[str, int]
    after: dict[str, int]
    change: Change

    @property
    def moved(self) -> bool:
        return self.before["allocated"] != self.after["allocated"]

    @property
    def reported(self) -> bool:
        return self.change.status is not Course.SAME

    @property
    def exact(self) -> bool:
        """Whether both traces have the real peaks to the byte."""
        sides = ((self.before, self.change.before), (self.after, self.change.after))
        return all(
            guarded is not None
            and (real["allocated"], real["reserved"])
            == (guarded.outline.peak_allocated_bytes, guarded.outline.peak_reserved_bytes)
            for real, guarded in sides
        )


def trace(spec: dict[str, Any]) -> Guarded:
    side = spec["side"]
    return outline(
        lambda: edits.Net(spec),
        step=edits.step,
        inputs=[f"float32[B,3,{side},{side}]", "int64[B]"],
        optimizer=functools.partial(edits.build_optimizer, spec),
        batch_size=spec["batch"],
        device=DEVICE,
    )


def check(driver: StubDriver, count: int, seed: int) -> list[Outcome]:
    """So many edits, ten of each model."""
    models = [edits.draw(seed * 100_000 + number) for number in range((count + PER_MODEL - 1) // PER_MODEL)]
    drawn = [edits.edit(models[number // PER_MODEL], seed * 100_000 + number) for number in range(count)]
    specs = [*models, *(spec for _, spec in drawn)]
    with tempfile.TemporaryDirectory() as folder:
        task = Path(folder, "task.json")
        task.write_text(json.dumps(specs))
        driver.run_script(
            Path(edits.__file__), [task, folder], fresh=False, device=DEVICE, timeout_s=300 + 60 * len(specs)
        )
        real = [json.loads((Path(folder) / f"{index}.json").read_text()) for index in range(len(specs))]
    traced = [trace(spec) for spec in specs]
    found = []
    for number, (name, _) in enumerate(drawn):
        base, edited = number // PER_MODEL, len(models) + number
        change = Change.of(name, traced[base], traced[edited], Allowed())
        found.append(Outcome(name.partition(" at ")[0], real[base], real[edited], change))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edits", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = check(build_stub(folder), given.edits, given.seed)
    print(f"{'edit':<14} {'n':>4} {'moved':>6} {'reported':>9} {'missed':>7} {'false':>6} {'exact':>6}")
    kinds = Counter(outcome.kind for outcome in found)
    for kind in [*sorted(kinds), None]:
        own = [outcome for outcome in found if kind in (None, outcome.kind)]
        moved, reported = [sum(getattr(each, name) for each in own) for name in ("moved", "reported")]
        missed = sum(each.moved and not each.reported for each in own)
        false = sum(each.reported and not each.moved for each in own)
        exact = sum(each.exact for each in own)
        print(f"{kind or 'all':<14} {len(own):>4} {moved:>6} {reported:>9} {missed:>7} {false:>6} {exact:>6}")


if __name__ == "__main__":
    main()
