"""timm's models: the trace against torch's real allocator, one architecture of a family and then of the next."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.oracle.stub import StubDriver
from tools.accuracy.allocator import EXACT_SHARE, why_none
from tools.accuracy.cases import in_turns
from tools.accuracy.children import Answer, Children, Work, code_hash
from tools.accuracy.compare import STUB_NAMES, versions
from tools.accuracy.page import Goal, Part, percent, share, table

HERE = Path(__file__).parent
SEEDS = {"development": 1, "held-out": 5}
"""Causes of errors were looked for in the cases of the first; those of the other were only counted."""

HELD_OUT_SHARE = 2 / 3
"""Cases of the held-out draw to one of the development draw."""

MEMORY_BYTES = 1 << 44
"""Of the device that the stub plays: no step runs out of memory, so that every model that trains has peaks."""

BATCHES = (1, 2, 4, 8, 16, 32, 64)
DEVICES = ("h200", "a100_80gb")
LIMIT = 0.01


def families() -> dict[str, list[str]]:
    """The architectures of each of timm's modules, by the module's name."""
    import timm

    modules = {timm.models.model_entrypoint(name).__module__ for name in timm.list_models()}
    found = {module.rpartition(".")[2]: timm.list_models(module=module.rpartition(".")[2]) for module in modules}
    return {module: found[module] for module in sorted(found)}


def draw(count: int, seed: int) -> list[list[Any]]:
    """Items of `timm_child.py`: an architecture of each family in turn, with every value of the other axes in turn."""
    by_family, items = families(), []
    axes = zip(
        in_turns(sorted(by_family), count, seed, "timm family"),
        in_turns(("sgd", "adamw"), count, seed, "timm optimizer"),
        in_turns(BATCHES, count, seed, "timm batch"),
        in_turns(("float32", "bf16"), count, seed, "timm precision"),
        in_turns(DEVICES, count, seed, "timm device"),
        strict=True,
    )
    for number, (family, *rest) in enumerate(axes):
        items.append([random.Random(f"{seed} timm {number}").choice(by_family[family]), *rest])
    return items


def timm_part(driver: StubDriver, children: Children, count: int) -> Part:
    """The part of the page: `count` cases to look for causes in, and the held-out ones."""
    part = Part("timm's models, against torch's real allocator")
    if importlib.util.find_spec("timm") is None:
        part.say("Not run: timm is not installed.")
        return part
    part.say(
        f"timm {importlib.metadata.version('timm')}, without cuDNN's workspaces on either side: an architecture of "
        "each family in turn, of any size, at the image size of its own configuration, in batches of "
        f"{BATCHES[0]} to {BATCHES[-1]}; three steps, on a device whose memory is enough. Causes of differences were "
        "looked for in the development draw; the held-out draw was only counted."
    )
    rows = []
    for name, seed in SEEDS.items():
        items = draw(count if name == "development" else math.ceil(HELD_OUT_SHARE * count), seed)
        truths, estimates = ask(items, driver, children)
        compared = list(zip(items, truths, estimates, strict=True))
        rows.append(_row(name, compared))
        for item, truth, estimate in compared:
            if truth != estimate or "allocated" not in truth:
                part.lines.append(f"- {name}: `{' '.join(map(str, item))}`: {_difference(truth, estimate)}")
        if name == "held-out":
            equal = sum("allocated" in truth and truth == estimate for _, truth, estimate in compared)
            ran = sum("allocated" in truth for truth in truths)
            reached = equal / ran if ran else 0.0
            asked, found = f"at least {percent(EXACT_SHARE)}", share(equal, ran)
            goal = Goal("timm's models, held-out: exact", asked, found, reached >= EXACT_SHARE)
            part.goals.append(goal)
    part.lines.append("")
    part.lines += [
        *table(["draw", "ran", "equal", "differ", "worst allocated", "worst reserved", "no number"], rows),
        "",
    ]
    return part


def ask(items: Sequence[list[Any]], driver: StubDriver, children: Children) -> tuple[list[Answer], list[Answer]]:
    """What the real allocator and the trace say, in the order of the items."""
    made = (*versions().values(), importlib.metadata.version("timm"))
    truths: dict[int, Answer] = {}
    for device in DEVICES:
        environment = driver.environment(STUB_NAMES[device], memory_bytes=MEMORY_BYTES)
        key = ("truth", device, *made, code_hash("tools/accuracy/timm_child.py", "tests/oracle/*.c"))
        work = Work(f"timm, real allocator, {device}", HERE / "timm_child.py", environment, key)
        places = [place for place, item in enumerate(items) if item[4] == device]
        truths |= dict(zip(places, children.ask(work, [items[place] for place in places]), strict=True))
    key = ("estimate", *made, code_hash("tools/accuracy/timm_child.py", "bench/estimators/**/*.py"))
    estimates = children.ask(Work("timm, estimate", HERE / "timm_child.py", key=key), items)
    return [truths[place] for place in range(len(items))], estimates


def _row(name: str, compared: Sequence[tuple[list[Any], Answer, Answer]]) -> list[str]:
    ran = [(truth, estimate) for _, truth, estimate in compared if "allocated" in truth]
    scored = [(truth, estimate) for truth, estimate in ran if "allocated" in estimate]
    equal = sum(truth == estimate for truth, estimate in scored)
    worst = {
        peak: max(((e[peak] - t[peak]) / t[peak] for t, e in scored), key=abs, default=0.0)
        for peak in ("allocated", "reserved")
    }
    figures = [percent(worst[peak], signed=True) for peak in worst]
    return [
        name,
        str(len(ran)),
        share(equal, len(ran)),
        str(len(scored) - equal),
        *figures,
        str(len(ran) - len(scored)),
    ]


def _difference(truth: Answer, estimate: Answer) -> str:
    if "allocated" not in truth:
        said = f"estimate: {why_none(estimate)}" if truth != estimate else "the estimate says so too"
        return f"does not run on torch's real allocator: {why_none(truth)}; {said}"
    if "allocated" not in estimate:
        return f"no number: {why_none(estimate)}"
    errors = {peak: (estimate[peak] - truth[peak]) / truth[peak] for peak in ("allocated", "reserved")}
    return ", ".join(f"{peak} {percent(error, signed=True)}" for peak, error in errors.items() if error)
