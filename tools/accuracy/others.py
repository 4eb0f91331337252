"""The estimates against measurements by others, where a folder holds them; neither they nor their rows are written."""

from __future__ import annotations

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tools.accuracy.children import ROOT, Answer, Children, code_hash
from tools.accuracy.compare import HERE, versions
from tools.accuracy.page import Goal, Part, percent, share, table
from tools.fit_roofline import CARD, FAMILY
from tools.throughputs import FORWARD, GPUS, TIMM

XMEM, SCHEDTUNE = "peak_memory_xmem.csv", "peak_memory_schedtune.csv"
XMEM_MEDIAN, XMEM_P90, SCHEDTUNE_MEDIAN = 0.02, 0.07, 0.025
CARD_MEDIAN, CARD_MEAN, CARD_WORST, PAIRS, HELD = 0.07, 0.11, 0.2, 0.9, 0.9
FAMILY_MEDIAN, FAMILY_P90, FORWARD_BIAS, FORWARD_RANK = 0.06, 0.18, 0.1, 0.95
REPEAT_SPREAD = 0.02
"""Repeats of xMem's measurements differ by up to so much."""

CONSTANT = "One constant a GPU (context and loaded modules) is fitted; `held out` fits it on the other families' rows."

_CODE = ("bench/**/*.py", "bench/devices/*.toml", "tools/*.py", "tools/timm_models.toml")


def others_parts(folder: Path | None, children: Children) -> list[Part]:
    """XMem's and SchedTune's peaks, and everybody's throughputs."""
    return [_xmem(folder, children), _schedtune(folder, children), _speed_part(folder, children)]


def _absent(part: Part, folder: Path | None, name: str, goals: list[Goal]) -> bool:
    if folder is not None and (folder / name).exists():
        return False
    part.say(f"Not run: no folder with `{name}` was given (`--data DIR`).")
    part.goals += goals
    return True


def _validated(folder: Path, name: str, children: Children) -> Answer:
    """What `bench validate FILE --json` says."""

    def run() -> Answer:
        command = [sys.executable, "-m", "bench", "validate", str(folder / name), "--json"]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        found: Answer = json.loads(done.stdout)
        return found

    return children.remember(f"validate {name}", _key(folder / name), run)


def _key(file: Path) -> list[str]:
    return [*versions().values(), code_hash(*_CODE), str(hash_of(file))]


def hash_of(file: Path) -> str:
    """Of a file's content."""
    import hashlib

    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def _groups(answer: Answer) -> list[str]:
    rows = []
    for group in answer["groups"]:
        errors, held = group["errors"], group["held_out"]
        if group["family"] != "all" or errors is None:
            continue
        left = [percent(held["median_abs"]), percent(held["p90_abs"])] if held else ["", ""]
        constant = f"{group['constant_bytes'] / 2**20:.0f} MiB" if group["constant_bytes"] is not None else ""
        rows.append(
            [
                group["device"],
                str(errors["n"]),
                percent(errors["median_abs"]),
                percent(errors["p90_abs"]),
                percent(errors["worst"], signed=True),
                percent(errors["bias"], signed=True),
                *left,
                constant,
            ]
        )
    head = ["device", "rows", "median", "p90", "worst", "bias", "held out: median", "held out: p90", "constant"]
    return [*table(head, rows), ""]


def _all(answer: Answer) -> dict[str, Any]:
    found = next(group["errors"] for group in reversed(answer["groups"]) if group["family"] == "all")
    return dict(found)


def _xmem(folder: Path | None, children: Children) -> Part:
    part = Part("Against xMem's measurements")
    what = "xMem's CNN rows"
    asked = [
        (f"{what}: median error", f"at most {percent(XMEM_MEDIAN)}"),
        (f"{what}: p90", f"at most {percent(XMEM_P90)}"),
        (f"{what}: failures at the estimate", "fewer than xMem's"),
    ]
    if _absent(part, folder, XMEM, [Goal(*names, "not run", None) for names in asked]):
        return part
    assert folder is not None
    answer = _validated(folder, XMEM, children)
    part.say(
        "One constant a GPU (context and loaded modules) is fitted; `held out` fits it on the other families' rows."
    )
    part.lines += _groups(answer)
    mine, theirs = _beside_xmem(answer, folder / XMEM)
    rows = [_failures("this estimator", mine), _failures("xMem", theirs)]
    spread = percent(REPEAT_SPREAD)
    part.say(
        "On the same rows, beside xMem's own estimates. A device of the estimate's size fails where the estimate lies "
        f"below the peak; repeats of the measurement differ by up to {spread}."
    )
    head = ["estimator", "rows", "median", "p90", "below the peak", f"by more than {spread}"]
    part.lines += [*table(head, rows), ""]
    errors = _all(answer)
    (below, theirs_below), (far, theirs_far) = (
        [int((values < limit).sum()) for values in (mine, theirs)] for limit in (0.0, -REPEAT_SPREAD)
    )
    failures = f"{below}, xMem {theirs_below}; by more than {spread}: {far}, xMem {theirs_far}"
    reached = [
        (percent(errors["median_abs"]), errors["median_abs"] <= XMEM_MEDIAN),
        (percent(errors["p90_abs"]), errors["p90_abs"] <= XMEM_P90),
        (failures, below < theirs_below),
    ]
    part.goals += [Goal(*names, *found) for names, found in zip(asked, reached, strict=True)]
    return part


def _beside_xmem(answer: Answer, file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Signed errors of this estimator and of xMem on the rows where both have an estimate."""
    with file.open(newline="", encoding="utf-8") as opened:
        lines = list(csv.DictReader(opened))
    mine, theirs = [], []
    for row in answer["rows"]:
        source = lines[row["line"] - 2]
        if row["relative_error"] is not None and source["xmem_est_bytes"]:
            theirs.append(float(source["xmem_est_bytes"]) / float(source["ground_nvml_bytes"]) - 1)
            mine.append(row["relative_error"])
    return np.array(mine), np.array(theirs)


def _failures(name: str, errors: np.ndarray) -> list[str]:
    size = np.abs(errors)
    return [
        name,
        str(len(errors)),
        percent(float(np.median(size))),
        percent(float(np.quantile(size, 0.9))),
        share(int((errors < 0).sum()), len(errors)),
        share(int((errors < -REPEAT_SPREAD).sum()), len(errors)),
    ]


def _schedtune(folder: Path | None, children: Children) -> Part:
    part = Part("Against SchedTune's measurements")
    what, asked = "SchedTune's rows: median error", f"at most {percent(SCHEDTUNE_MEDIAN)}"
    if _absent(part, folder, SCHEDTUNE, [Goal(what, asked, "not run", None)]):
        return part
    assert folder is not None
    answer = _validated(folder, SCHEDTUNE, children)
    part.say(CONSTANT)
    part.lines += _groups(answer)
    errors = _all(answer)
    reached = f"{percent(errors['median_abs'])} (p90 {percent(errors['p90_abs'])})"
    part.goals.append(Goal(what, asked, reached, errors["median_abs"] <= SCHEDTUNE_MEDIAN))
    return part


def _speed_part(folder: Path | None, children: Children) -> Part:
    part = Part("Time, against measurements by others")
    asked = [
        ("many GPUs, each left out: median error of samples/s", f"at most {percent(CARD_MEDIAN)}"),
        ("many GPUs, each left out: mean", f"at most {percent(CARD_MEAN)}"),
        ("many GPUs, each left out: the largest median of a GPU", f"at most {percent(CARD_WORST)}"),
        *(
            (f"ratios between cards, ResNet-50, {precision}: within 10 %", f"at least {percent(PAIRS)}")
            for precision in ("tf32", "fp16")
        ),
        ("timm's rows (RTX 3090), family left out: median", f"at most {percent(FAMILY_MEDIAN)}"),
        ("timm's rows (RTX 3090), family left out: p90", f"at most {percent(FAMILY_P90)}"),
        ("inference, RTX 5090 from RTX 3090: median ratio", f"within {percent(FORWARD_BIAS)}"),
        ("inference, RTX 5090 from RTX 3090: rank correlation", f"at least {FORWARD_RANK}"),
        ("measurements in the interval, card left out", f"at least {percent(HELD)}"),
    ]
    for name in (GPUS, TIMM, FORWARD):
        if _absent(part, folder, name, [Goal(*names, "not run", None) for names in asked]):
            return part
    if importlib.util.find_spec("timm") is None:
        part.say("Not run: timm is not installed, and some rows are of its models.")
        part.goals += [Goal(*names, "not run", None) for names in asked]
        return part
    assert folder is not None
    key = [item for name in (GPUS, TIMM, FORWARD) for item in _key(folder / name)]
    answer = children.remember("time", key, lambda: _speed(folder))
    part.say(
        "The roofline, fitted again without the GPU, the generation of GPUs or the family of models whose rows are "
        "counted. What the protocols of the measurements do differently is stated in `tools/throughputs.py`; no row is "
        "left out. In the sample: the same rows are fitted."
    )
    head = ["rows", "n", "median", "mean", "p90", "bias", "rank correlation"]
    part.lines += [*table(head, [_score_row(row) for row in answer["errors"]]), ""]
    by_name = {row["name"]: row for row in answer["errors"]}
    card, family = by_name[CARD], by_name[FAMILY]
    forward = next(row for name, row in by_name.items() if name.startswith("forward") and "from" in name)
    worst = answer["worst"][CARD]
    held = answer["held"][CARD]
    reached = [
        (percent(card["median"]), card["median"] <= CARD_MEDIAN),
        (percent(card["mean"]), card["mean"] <= CARD_MEAN),
        (f"{percent(worst['median'])} ({worst['group']})", worst["median"] <= CARD_WORST),
        *((percent(row["close"]), row["close"] >= PAIRS) for row in answer["pairs"]),
        (percent(family["median"]), family["median"] <= FAMILY_MEDIAN),
        (percent(family["p90"]), family["p90"] <= FAMILY_P90),
        (percent(forward["bias"], signed=True), abs(forward["bias"]) <= FORWARD_BIAS),
        (f"{forward['rank']:.3f}", forward["rank"] >= FORWARD_RANK),
        (percent(held), held >= HELD),
    ]
    part.goals += [Goal(*names, *found) for names, found in zip(asked, reached, strict=True)]
    return part


def _score_row(row: Answer) -> list[str]:
    figures = [percent(row[key]) for key in ("median", "mean", "p90")]
    return [row["name"], str(row["n"]), *figures, percent(row["bias"], signed=True), f"{row['rank']:.3f}"]


def _speed(folder: Path) -> Answer:
    command = [sys.executable, str(HERE / "speed_child.py"), str(folder)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: Answer = json.loads(done.stdout)
    return found
