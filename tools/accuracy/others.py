"""The estimates against measurements by others, where a folder holds them; neither they nor their rows are written."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tools.accuracy.children import ROOT, Answer, Children, code_hash
from tools.accuracy.compare import HERE, versions
from tools.accuracy.page import Goal, Part, percent, share, table

XMEM, SCHEDTUNE, TIMM = "peak_memory_xmem.csv", "peak_memory_schedtune.csv", "train_throughput_timm_rtx3090.csv"
XMEM_MEDIAN, XMEM_P90, SCHEDTUNE_MEDIAN = 0.02, 0.07, 0.025
SPEED_MEDIAN, SPEED_RANK = 0.11, 0.95
REPEAT_SPREAD = 0.02
"""Repeats of xMem's measurements differ by up to so much."""

CONSTANT = "One constant a GPU (context and loaded modules) is fitted; `held out` fits it on the other families' rows."

_CODE = ("bench/**/*.py", "bench/devices/*.toml", "tools/fit_roofline.py", "tools/timm_models.toml")


def others_parts(folder: Path | None, children: Children) -> list[Part]:
    """XMem's and SchedTune's peaks, and timm's throughput."""
    return [_xmem(folder, children), _schedtune(folder, children), _timm(folder, children)]


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


_SCORE = re.compile(
    r"^shipped, (?P<layout>\w+): n (?P<n>\d+), median error (?P<median>[\d.]+), p90 (?P<p90>[\d.]+), "
    r"bias (?P<bias>[+-][\d.]+), rank correlation (?P<rank>-?[\d.]+)$",
    re.MULTILINE,
)


def _timm(folder: Path | None, children: Children) -> Part:
    part = Part("Time, against timm's measurements")
    what = "timm's rows of models that torchvision shares (RTX 3090)"
    asked = [
        (f"{what}: median error of samples/s", f"under {percent(SPEED_MEDIAN)}"),
        (f"{what}: rank correlation", f"over {SPEED_RANK}"),
    ]
    if _absent(part, folder, TIMM, [Goal(*names, "not run", None) for names in asked]):
        return part
    assert folder is not None
    answer = children.remember("time", _key(folder / TIMM), lambda: _speed(folder))
    rows = [
        [
            score["layout"],
            score["n"],
            percent(float(score["median"])),
            percent(float(score["p90"])),
            percent(float(score["bias"]), signed=True),
            score["rank"],
        ]
        for score in answer["scores"]
    ]
    part.say(
        "The roofline with the constants that are shipped, which were fitted to these rows among others; "
        "`python tools/fit_roofline.py` prints the errors on families that were left out of the fit."
    )
    part.lines += [*table(["memory format", "rows", "median", "p90", "bias", "rank correlation"], rows), ""]
    every = next(score for score in answer["scores"] if score["layout"] == "all")
    part.goals += [
        Goal(*asked[0], percent(float(every["median"])), float(every["median"]) < SPEED_MEDIAN),
        Goal(*asked[1], every["rank"], float(every["rank"]) > SPEED_RANK),
    ]
    return part


def _speed(folder: Path) -> Answer:
    command = [sys.executable, str(HERE / "speed_child.py"), str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=None, stdout=subprocess.PIPE, text=True, check=True)
    return {"scores": [match.groupdict() for match in _SCORE.finditer(done.stdout)]}
