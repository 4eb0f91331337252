"""What `bench fit --save-memory` prints: the answer, the table on one screen, and the same as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from bench.terminal import printable
from bench.units import MISSING, counted, format_bytes, format_frac, format_rate

if TYPE_CHECKING:
    from bench.estimators.saving import Option, Saving

MOST_OTHERS = 5
"""Ways outside the best trade-offs that are printed, so that the answer takes one screen; JSON has all."""


def print_saving(
    saving: Saving, device: str, runs: Sequence[Mapping[str, Any]] | None = None, *, as_json: bool
) -> None:
    """Print the answer.

    Args:
        saving: The answer.
        device: As the user named it.
        runs: What `--verify` ran; None without it.
        as_json: Whether to print JSON.
    """
    from bench import catalog
    from bench.cli.root import echo_json

    if as_json:
        echo_json(saving_value(saving, device) | ({} if runs is None else {"verify_runs": list(runs)}))
        return
    case = saving.plain.case
    title = f"{case.label(('precision', 'memory_format', 'image_size'))} on {device}"
    click.echo(click.style(printable(title), bold=True))
    click.echo(click.style(printable(saving.sentence), bold=True))
    for line in saving_lines(saving):
        click.echo(printable(line))
    for line in [] if runs is None else verified_lines(saving, runs):
        click.echo(printable(line))
    if note := catalog.model_note(case.model):
        click.echo(printable(f"note: {case.model}: {note}"))


def saving_value(saving: Saving, device: str) -> dict[str, Any]:
    """The answer for `--json`: the axes of the step as it is, and every way under its list."""
    lists = ("pareto", "others", "other_precisions", "tried")
    ones = ("plain", "cheapest", "nearest")
    return {
        **saving.plain.case.axes,
        "device": device,
        "answer": saving.sentence,
        "memory_bytes": saving.memory_bytes,
        "missing_bytes": saving.missing_bytes,
        **{name: option and _option_value(option) for name in ones for option in [getattr(saving, name)]},
        **{name: [_option_value(option) for option in getattr(saving, name)] for name in lists},
        "unknown": saving.unknown,
        "speed_basis": saving.speed_basis,
    }


def _option_value(option: Option) -> dict[str, Any]:
    fields = {name: value for name, value in asdict(option).items() if name != "case"}
    return {"label": option.label, **fields, "case_key": option.case.key}


def saving_lines(saving: Saving) -> Iterator[str]:
    """The table of the ways that fit, what they give up, and what could not be estimated."""
    others = saving.others[:MOST_OTHERS]
    shown = (*saving.pareto, *others, *saving.other_precisions)
    plain = (saving.plain,) if shown and saving.plain.verdict == "does not fit" else ()
    if shown:
        width = max(len(option.label) for option in shown)
        yield f"  {'':<{width}} {'peak':>9} {'share':>6} {'samples/s':>10} {'change':>8}"
    parts: list[tuple[str, Sequence[Option]]] = [
        ("compared with", plain),
        ("best trade-offs: nothing else is as fast with noticeably less memory", saving.pareto),
        (f"these {'fit' if any(option.fits for option in others) else 'may fit'} too", others),
        ("another precision or memory format", saving.other_precisions),
    ]
    for head, options in parts:
        if options:
            yield head
            yield from (_row(option, width) for option in options)
        if options is others and len(saving.others) > len(others):
            yield f"  and {len(saving.others) - len(others)} more (--json)"
    if costs := _costs(shown):
        yield "what they give up"
        wide = max(map(len, costs))
        yield from (f"  {label:<{wide}}  {words}" for label, words in costs.items())
    for reason in dict.fromkeys(saving.unknown.values()):
        labels = [label for label, other in saving.unknown.items() if other == reason]
        more = f" and {counted(len(labels) - 1, 'combination')}" if len(labels) > 1 else ""
        yield f"not estimated: {labels[0]}{more}: {reason}"
    yield f"{counted(len(saving.tried), 'way')} tried; the peak is what the driver reports, with the CUDA context"
    if saving.speed_basis:
        yield f"samples/s: {saving.speed_basis}"


def _row(option: Option, width: int) -> str:
    rate = MISSING if option.samples_per_s is None else format_rate(option.samples_per_s).removesuffix("/s")
    change = "" if option.speed_ratio is None or not option.changes else format_frac(option.speed_ratio - 1)
    doubt = "" if option.fits else option.verdict
    sizes = f"{format_bytes(option.device_bytes):>9} {option.share_frac * 100:>4.0f} %"
    return f"  {option.label:<{width}} {sizes} {rate:>10} {change:>8}  {doubt}".rstrip()


def _costs(options: Sequence[Option]) -> dict[str, str]:
    """What each change of some ways gives up, each change once."""
    from bench.records import axis_words

    return {
        axis_words(axis, option.changes[axis]): words for option in options for axis, words in option.gives_up.items()
    }


def verified_lines(saving: Saving, runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Real runs beside the estimates of the same ways; errors are (estimate - measured) / measured."""
    from bench.stats import relative_error

    if not runs:
        yield "verified: nothing to run, since nothing fits"
        return
    by_label = {option.label: option for option in saving.tried}
    width = max(len(run["label"]) for run in runs)
    yield f"verified with {counted(len(runs), 'run')} (error of the estimate)"
    for run in runs:
        option = by_label[run["label"]]
        if run["peak_reserved_bytes"] is None or run["samples_per_s"] is None:
            yield f"  {run['label']:<{width}} {run['status']}" + (f": {run['reason']}" if run["reason"] else "")
            continue
        seen, rate = run["peak_reserved_bytes"], run["samples_per_s"]
        made = option.samples_per_s
        errors = [format_frac(relative_error(option.reserved_bytes, seen))]
        errors.append(format_frac(relative_error(made, rate)) if made else MISSING)
        yield (
            f"  {run['label']:<{width}} {format_bytes(seen):>9} reserved ({errors[0]}), "
            f"{format_rate(rate, 'samples')} ({errors[1]})"
        )
