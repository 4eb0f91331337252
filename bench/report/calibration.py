"""The page of a calibration: what was measured and fitted, how good it is, and which settings a sweep should use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.report.blocks import Block, Bullets, Code, Headline, Listing, Notice, Paragraph, Table, Words
from bench.report.render import render_markdown
from bench.units import MISSING, counted, format_bytes, format_frac, format_rate, format_seconds

_SHORT = 8
"""Fewer steps than this are called few."""
MOST_WORKSPACES = 12


def render_calibration(content: Mapping[str, Any]) -> str:
    """The page as Markdown.

    Args:
        content: As `bench.sweep.calibrating` writes it to `calibration.json`.
    """
    sections = (
        ("Estimates", _estimates(content)),
        ("Steps", _steps(content)),
        ("Noise floor", _noise(content)),
        ("Settings for sweeps", _settings(content)),
        ("The device", _device(content)),
        ("What this does not say", [Bullets(_LIMITS)]),
    )
    return render_markdown(f"Calibration of {content['device']['gpu_name']}", sections)


_NAMES = {
    "before": "before, without the calibration",
    "fitted": "after, on the steps of the fit",
    "left_out": "after, each case left out of the fit",
    "model_left_out": "after, all cases of its model left out",
}

_LIMITS: Sequence[Words] = (
    "A calibration is of one machine: its clocks, power limit, cooling, driver and versions. Calibrate again after "
    "a change.",
    "Cases that were left out resemble those that were fitted: same precisions, image sizes and kinds of layers. On "
    "other work the error may be larger. Leaving out a whole model is the stricter of the two tests.",
    "With few steps, the error's own interval is wide. It is given beside the median.",
    "The spread between processes is that of these few minutes. Other users of the machine, and other times of "
    "the day, may add to it.",
)


def summary_lines(content: Mapping[str, Any]) -> list[str]:
    """The outcome for the terminal."""
    speed = content["speed"]
    lines = [f"{content['device']['gpu_name']}: {_headline(content)}"]
    lines += [f"  samples/s {_NAMES[name]}: {_errors(speed[name])}" for name in _NAMES if speed[name]]
    for row in content["memory"]:
        before, after = _errors(row["before"]), _errors(row["after"])
        lines.append(f"  memory, {row['estimate']}: {before}" + (f" before; after {after}" if after != before else ""))
    if noise := content["noise"]:
        visible = ", ".join(f"{_size(each['frac'])} with {each['processes']}" for each in noise["visible"])
        lines.append(f"  differences that can be seen: {visible} processes per side")
    if content["not_kept"]:
        lines.append(f"  not kept for estimates: {content['not_kept']}")
    lines.append(f"  for sweeps: {_set_options(content) or 'too few runs for a recommendation'}")
    return lines


def _headline(content: Mapping[str, Any]) -> str:
    if not content["fit"]["values"]:
        return f"not calibrated: only {counted(len(content['cases']), 'case')} measured. Raise --minutes"
    return content["device"]["calibration"] or ""


def _errors(found: Mapping[str, Any] | None) -> str:
    """`median 6.1 % (95 %: 4.0 % to 9.2 %), p90 12 %, n = 20`."""
    if found is None:
        return "none"
    between = ""
    if found["median_low"] is not None:
        between = f" (95 %: {_share(found['median_low'])} to {_share(found['median_high'])})"
    return f"median {_share(found['median_abs'])}{between}, p90 {_share(found['p90_abs'])}, n = {found['n']}"


def _share(frac: float, digits: int = 1) -> str:
    """A fraction that has no sign."""
    return f"{frac * 100:.{digits}f} %"


def _size(frac: float) -> str:
    """A difference; what doubles a rate is not measured any more."""
    return _share(frac) if frac <= 1 else "over 100 %"


def _error_cells(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return [MISSING] * 6
    low, high = found["median_low"], found["median_high"]
    between = f"{_share(low)} to {_share(high)}" if low is not None else "too few"
    signed = [format_frac(found[name]) for name in ("worst", "bias")]
    return [_share(found["median_abs"]), between, _share(found["p90_abs"]), *signed, str(found["n"])]


_ERROR_HEAD = ("median", "95 % interval of it", "p90", "worst", "bias", "n")


def _estimates(content: Mapping[str, Any]) -> Sequence[Block]:
    blocks: list[Block] = [Headline(_headline(content))]
    fitted = sum(case["fitted"] is not None for case in content["cases"])
    if 0 < fitted < _SHORT:
        blocks.append(Notice("warning", f"{counted(fitted, 'step')} are few for such a fit; allow more --minutes"))
    if content["not_kept"]:
        blocks.append(Notice("warning", f"Not kept for the estimates of this account: {content['not_kept']}"))
    if content["speed"]["before"] is None:
        blocks.append(Paragraph("Without a calibration there is no estimate of speed on this device."))
    rows = [[title, *_error_cells(content["speed"][name])] for name, title in _NAMES.items() if content["speed"][name]]
    numeric = frozenset(range(1, 7))
    if rows:
        blocks.append(Table(("estimate of samples/s", *_ERROR_HEAD), rows, numeric, "Relative errors of speed"))
    factors = [
        [_title(key), _rate(key, content["fit"]["values"][key]), f"{factor:.3g}"]
        for key, factor in content["fit"]["factors"].items()
    ]
    if factors:
        rated = content["device"]["kind"] == "cuda"
        start = "the rated figure" if rated else "the measured ceiling"
        caption = f"What was fitted; the factor is on {start}, of the host's time on a constant of the speed estimate"
        blocks.append(Table(("rate", "fitted", "factor"), factors, frozenset({1, 2}), caption))
    memory = [
        [f"{row['estimate']} ({row['against']})", when, *_error_cells(row[when])]
        for row in content["memory"]
        for when in (("before", "after") if row["before"] != row["after"] else ("before",))
    ]
    if memory:
        blocks.append(
            Table(
                ("estimate of memory", "calibration", *_ERROR_HEAD),
                memory,
                frozenset(range(2, 8)),
                "Relative errors of memory; formula and trace take nothing from a calibration",
            )
        )
    return blocks


def _title(key: str) -> str:
    return key.removeprefix("calibrated_").removesuffix("_bytes_per_s").removesuffix("_flop_per_s").removesuffix("_s")


def _rate(key: str, value: float) -> str:
    if key.endswith("_bytes_per_s"):
        return f"{value / 1e9:,.4g} GB/s"
    if key.endswith("_flop_per_s"):
        return f"{value / 1e12:,.4g} TFLOP/s"
    return format_seconds(value) if key.endswith("_s") else format_bytes(value)


def _steps(content: Mapping[str, Any]) -> Sequence[Block]:
    rows = []
    for case in content["cases"]:
        errors = [_error(case[name], case["measured"]) for name in ("before", "fitted", "left_out", "model_left_out")]
        what = (case["model"], case["dataset"], case["optimizer"], str(case["batch_size"]), case["precision"])
        rows.append(
            [*map(str, what), case["memory_format"], str(case["processes"]), format_rate(case["measured"]), *errors]
        )
    head = ("model", "data set", "optimizer", "batch", "precision", "layout", "processes", "samples/s")
    errors_head = ("before", "fitted", "left out", "model left out")
    reasons = [f"{case['model']}: {case['reason']}" for case in content["cases"] if case["reason"]]
    caption = "Measured steps, and the errors of their estimates of samples/s"
    blocks: list[Block] = [Table((*head, *errors_head), rows, frozenset((3, *range(6, 12))), caption)] if rows else []
    return [*blocks, *([Bullets(reasons)] if reasons else [])]


def _error(estimate: float | None, measured: float) -> str:
    return MISSING if estimate is None else format_frac(estimate / measured - 1)


def _noise(content: Mapping[str, Any]) -> Sequence[Block]:
    noise = content["noise"]
    if noise is None:
        return [Paragraph("No case was measured twice, so that nothing is known of it. Allow more --minutes.")]
    spread = (
        f"Processes of the same case differ by {_share(noise['spread_frac'], 2)} (standard deviation; 95 % interval "
        f"{_share(noise['low'], 2)} to {_share(noise['high'], 2)}, {noise['degrees']} degrees of freedom over "
        f"{counted(noise['cases'], 'case')}; from {_share(noise['quietest_frac'], 2)} in the quietest to "
        f"{_share(noise['noisiest_frac'], 2)} in the noisiest)."
    )
    rows = [
        [str(each["processes"]), _size(each["frac"]), f"{_size(each['low'])} to {_size(each['high'])}"]
        for each in noise["visible"]
    ]
    caption = (
        "The smallest difference that a comparison of one case finds in 4 of 5 tries; of several cases at once, "
        "it must be larger"
    )
    blocks: list[Block] = [Paragraph(spread)]
    blocks.append(Table(("processes per side", "difference", "95 % interval"), rows, frozenset({0, 1, 2}), caption))
    if halves := noise["halves"]:
        total, false = sum(halves.values()), halves.get("faster", 0) + halves.get("slower", 0)
        words = ", ".join(f"{count} {verdict}" for verdict, count in halves.items())
        said = f"The first half of each case's processes against the second (A/A), {counted(total, 'case')}: {words}"
        blocks.append(Notice("warning" if false else "good", f"{said}; {false} false"))
    return blocks


def _set_options(content: Mapping[str, Any]) -> str:
    return " ".join(f"--set {override}" for override in content["settings"]["overrides"])


def _settings(content: Mapping[str, Any]) -> Sequence[Block]:
    settings = content["settings"]
    target = _share(settings["target_frac"])
    repeats = settings["repeats"]
    items: list[Words] = [
        f"repeats: {repeats} processes per case for an interval of ±{target}"
        if repeats
        else f"repeats: not known, or more than 100 processes per case for an interval of ±{target}",
        f"warm-up steps: {settings['warmup_steps'] or MISSING}, after which 9 of 10 runs were settled",
        f"measured steps: {settings['measured_steps'] or MISSING}, so that the spread of steps adds little to that of "
        "processes",
        f"precisions that pay here: {', '.join(settings['precisions']) or MISSING}",
    ]
    blocks: list[Block] = [Bullets(items), Paragraph(f"From {counted(settings['runs'], 'run')}.")]
    if options := _set_options(content):
        blocks.append(Listing(f"bench sweep {options}", "sh"))
    return blocks


def _device(content: Mapping[str, Any]) -> Sequence[Block]:
    rows = [[key, _rate(key, value)] for key, value in content["ceilings"].items() if isinstance(value, float)]
    blocks: list[Block] = [Table(("measured", "value"), rows, frozenset({1}), "What the device reaches")]
    if context := content["context"]:
        low, high = format_bytes(context["low_bytes"]), format_bytes(context["high_bytes"])
        blocks.append(
            Paragraph(
                f"CUDA context and loaded modules: {format_bytes(context['median_bytes'])} (median of "
                f"{counted(context['cases'], 'case')}; {low} to {high})."
            )
        )
    taken = [item for item in content["workspaces"] if item["bytes"]]
    if found := sorted(taken, key=lambda item: -item["bytes"])[:MOST_WORKSPACES]:
        cells = [
            [
                "x".join(map(str, item["images"])),
                f"{item['filters']} of {item['window']}x{item['window']}, stride {item['stride']}",
                *(str(item[name]) for name in ("groups", "precision", "memory_format", "way")),
                format_bytes(item["bytes"]),
            ]
            for item in found
        ]
        head = ("images", "filters", "groups", "precision", "layout", "way", "bytes")
        caption = (
            f"What convolutions took beside arguments and results; the largest of {len(content['workspaces'])}, all "
            "of them in calibration.json"
        )
        blocks.append(Table(head, cells, frozenset({6}), caption))
    facts = [
        f"{name.replace('_', ' ')}: {value}" for name, value in content["environment"].items() if value is not None
    ]
    command: Words = ("Estimates with this file elsewhere: ", Code("bench estimate --calibration FILE.toml"))
    return [*blocks, Bullets(facts), Paragraph(command)]
