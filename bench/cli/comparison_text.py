"""Comparisons as tables on a terminal, and as values for `--json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from bench.terminal import printable
from bench.units import MISSING, counted

if TYPE_CHECKING:
    import pandas as pd

    from bench.comparison import Comparison, Cost, Difference, GeoMean, Metric


def as_value(
    baseline: str, made: Mapping[str, Comparison], costs: Sequence[Cost], *, worst_first: bool
) -> dict[str, Any]:
    """One comparison flat; of several candidates, each under `comparisons`.

    Args:
        baseline: The name of the baseline.
        made: Comparisons by the name of their candidate.
        costs: Of all sides.
        worst_first: Whether cases are ordered by what got worse.
    """
    values = [
        {"baseline": baseline, "candidate": name, **_value(comparison, worst_first)}
        for name, comparison in made.items()
    ]
    cost = [asdict(item) for item in costs]
    if len(values) == 1:
        return {**values[0], "cost": cost}
    return {"baseline": baseline, "comparisons": values, "cost": cost}


def _value(comparison: Comparison, worst_first: bool) -> dict[str, Any]:
    return {
        "margin": comparison.margin,
        "confidence": comparison.confidence,
        "across": list(comparison.across),
        "processes": comparison.processes,
        "differences": [item._asdict() for item in comparison.differences],
        "cases": [known_values(row) for row in ordered(comparison.cases, worst_first).to_dict("records")],
        "geomean": {name: asdict(item) for name, item in comparison.geomean.items()},
        "missing": [item._asdict() for item in comparison.missing],
        "regressions": [known_values(row) for row in comparison.regressions.to_dict("records")],
        "notes": comparison.notes,
    }


def known_values(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row with plain numbers, and null for what is unknown."""
    import pandas as pd

    plain = {str(name): value.item() if hasattr(value, "item") else value for name, value in row.items()}
    return {name: None if pd.isna(value) else value for name, value in plain.items()}


_COLOURS = {"faster": "green", "slower": "red", "unclear": "yellow"}
_LONG = 60
"""Longer values of differences are cut: a list of architectures is of no use on a terminal."""


def print_comparisons(
    baseline: str, made: Mapping[str, Comparison], costs: Sequence[Cost], *, worst_first: bool
) -> None:
    """Print what differs, the cases of every metric, the whole, and what is missing.

    Args:
        baseline: The name of the baseline.
        made: Comparisons by the name of their candidate.
        costs: Of all sides.
        worst_first: Whether cases are ordered by what got worse.
    """
    for name, comparison in made.items():
        print_differences(baseline, name, comparison.differences)
    first = next(iter(made.values()))
    first_only = "" if first.processes is None else f". Only the first {first.processes} processes of each case count"
    _heading(
        f"Ratios are candidate over baseline ({baseline}). Changes below {first.margin * 100:g} % do not count; "
        f"intervals are at {first.confidence * 100:g} % confidence{first_only}"
    )
    for metric in dict.fromkeys(name for comparison in made.values() for name in comparison.geomean):
        if len(made) == 1:
            _print_cases(metric, first, worst_first)
        else:
            _print_candidates(metric, made, worst_first)
    _print_costs(costs)
    for name, comparison in made.items():
        _print_rest(name if len(made) > 1 else "", comparison)


def ordered(cases: pd.DataFrame, worst_first: bool) -> pd.DataFrame:
    """The rows as they are, or within each metric by how much worse the candidate is, unknown last."""
    if not worst_first:
        return cases
    from bench.comparison import METRICS

    higher = cases["metric"].map(lambda name: METRICS[name].higher_is_better)
    worse = cases["ratio"].where(higher, 1 / cases["ratio"])
    ranked = cases.assign(
        _metric=cases["metric"].map({name: place for place, name in enumerate(METRICS)}), _worse=worse
    )
    return cases.loc[ranked.sort_values(["_metric", "_worse"], kind="stable").index].reset_index(drop=True)


def print_differences(baseline: str, candidate: str, differences: Sequence[Difference]) -> None:
    """Print the fields in which two sides differ, by the names of the sides."""
    from bench.comparison import field_words

    _heading(f"What differs between {baseline} and {candidate} besides the cases")
    rows = [
        [item.kind, item.field, *(_cut(field_words(item.field, value)) for value in (item.baseline, item.candidate))]
        for item in differences
    ]
    if rows:
        _print_table([["", "", baseline, candidate], *rows])
    else:
        click.echo("  no recorded difference")


def _print_cases(metric: str, comparison: Comparison, worst_first: bool) -> None:
    """One row per case, and the geometric mean."""
    from bench.comparison import METRICS, verdict_words

    known = METRICS[metric]
    cases = ordered(comparison.cases[comparison.cases["metric"] == metric], worst_first)
    head = [
        _title(known),
        "baseline",
        "candidate",
        "ratio",
        f"{comparison.confidence * 100:g} % interval",
        "n",
        "verdict",
    ]
    rows, colours = [head], list[str | None]([None])
    for row in cases.to_dict("records"):
        counts = (
            str(row["n_baseline"])
            if row["n_baseline"] == row["n_candidate"]
            else f"{row['n_baseline']}/{row['n_candidate']}"
        )
        rows.append(
            [
                row["label"],
                known.show(row["baseline"]),
                known.show(row["candidate"]),
                _ratio(row["ratio"]),
                _interval(row["low"], row["high"]),
                counts,
                verdict_words(metric, row["verdict"]),
            ]
        )
        colours.append(_COLOURS.get(row["verdict"]))
    click.echo()
    _print_table(rows, colours)
    click.echo(f"  {_geomean_words(comparison.geomean[metric])}; {_tally(metric, cases['verdict'])}")
    _print_unclear(cases)
    _print_clocks(cases)


def _print_unclear(cases: pd.DataFrame, of: str = "") -> None:
    """Why cases are unclear, and how many for each reason."""
    for reason, count in Counter(cases.loc[cases["verdict"] == "unclear", "reason"]).most_common():
        click.echo(printable(f"  {of}unclear ({count}): {reason}"))


def _print_clocks(cases: pd.DataFrame, of: str = "") -> None:
    """What clocks have to do with the verdicts: a line for each case that differs in either, a count of the others."""
    from bench.comparison import NO_CLOCK, ClockRole

    told = cases[cases["clocks_reason"].notna()]
    known = told[told["clocks"].notna()]
    for row in known.to_dict("records"):
        if row["verdict"] in ("faster", "slower") or row["clocks"] == ClockRole.HIDES:
            click.echo(printable(f"  {of}clocks: {row['label']}: {row['clocks_reason']}"))
    alike = int((known["clocks"] == ClockRole.NO_DIFFERENCE).sum())
    if alike:
        click.echo(printable(f"  {of}clocks: no difference in seconds or in cycles ({alike})"))
    unknown = told.loc[told["clocks"].isna(), "clocks_reason"]
    for reason, count in Counter(unknown[unknown != NO_CLOCK]).most_common():
        click.echo(printable(f"  {of}not compared in cycles ({count}): {reason}"))


def _print_candidates(metric: str, made: Mapping[str, Comparison], worst_first: bool) -> None:
    """One row per case, by its worst candidate if the worst come first; one column per candidate."""
    import pandas as pd

    from bench.comparison import METRICS

    known = METRICS[metric]
    of = {name: item.cases[item.cases["metric"] == metric] for name, item in made.items() if metric in item.geomean}
    cells: dict[str, dict[str, str]] = {}
    labels: dict[str, list[str]] = {}
    every = pd.concat([cases.assign(name=name) for name, cases in of.items()], ignore_index=True)
    for row in ordered(every, worst_first).to_dict("records"):
        labels.setdefault(row["case_key"], [row["label"], known.show(row["baseline"])])
        cells.setdefault(row["case_key"], {})[row["name"]] = _cell(metric, row)
    rows = [[_title(known), "baseline", *made]]
    rows += [[*labels[key], *(found.get(name, MISSING) for name in made)] for key, found in cells.items()]
    click.echo()
    _print_table(rows)
    for name, cases in of.items():
        whole = _geomean_words(made[name].geomean[metric])
        click.echo(printable(f"  {name}: {whole}; {_tally(metric, cases['verdict'])}"))
        _print_unclear(cases, f"{name}: ")
        _print_clocks(cases, f"{name}: ")


def _cell(metric: str, row: Mapping[Any, Any]) -> str:
    """Ratio, interval and verdict of one case of one candidate."""
    from bench.comparison import verdict_words

    interval = f" ({_interval(row['low'], row['high'])})" if row["low"] == row["low"] else ""
    return f"{_ratio(row['ratio'])}{interval} {verdict_words(metric, row['verdict'])}"


def _print_costs(costs: Sequence[Cost]) -> None:
    if not costs:
        return
    from bench.comparison import METRICS

    names = list(dict.fromkeys(item.name for item in costs))
    show = METRICS["joules_per_sample"].show
    energy = {(item.label, item.name): show(item.joules_per_sample) for item in costs}
    prices = {(item.label, item.name): _price(item) for item in costs}
    for title, cells in (("energy per sample", energy), ("price of a million samples", prices)):
        if set(cells.values()) == {MISSING}:
            continue
        labels = dict.fromkeys(item.label for item in costs)
        click.echo()
        _print_table(
            [[title, *names], *([label, *(cells.get((label, name), MISSING) for name in names)] for label in labels)]
        )


def _print_rest(name: str, comparison: Comparison) -> None:
    """What is missing, notes, and regressions."""
    of = f"{name}: " if name else ""
    if comparison.missing:
        click.echo()
        _heading(f"{of}missing on one side or both")
        for item in comparison.missing:
            why = f": {item.reason}" if item.reason else ""
            click.echo(printable(f"  {item.label}, {item.side}: {item.status}{why}"))
    for note in comparison.notes:
        click.echo(printable(f"note: {of}{note}"))
    if len(comparison.regressions):
        count = comparison.regressions["case_key"].nunique()
        text = f"{of}regression in {counted(count, 'case')}"
        click.echo(click.style(printable(text), fg="red", bold=True))


def _heading(text: str) -> None:
    click.echo(click.style(printable(text), bold=True))


def _print_table(rows: Sequence[Sequence[str]], colours: Iterable[str | None] = ()) -> None:
    """Aligned columns under a header; the last cell of a row in its colour."""
    from rich.cells import cell_len

    safe = [[printable(cell) for cell in row] for row in rows]
    widths = [max(cell_len(row[place]) for row in safe) for place in range(len(safe[0]))]
    tints = [*colours, *[None] * len(safe)]
    for number, row in enumerate(safe):
        padded = [cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
        padded[-1] = click.style(row[-1], fg=tints[number]) if tints[number] else row[-1]
        line = "  " + "  ".join(padded).rstrip()
        click.echo(click.style(line, dim=True) if number == 0 else line)


def _title(metric: Metric) -> str:
    return f"{metric.label}, {'more' if metric.higher_is_better else 'less'} is better"


def _geomean_words(mean: GeoMean) -> str:
    if mean.ratio is None:
        return f"no ratio in any of {counted(mean.n_planned, 'case')}"
    over = f"over {mean.n} of {counted(mean.n_planned, 'case')}"
    if mean.low is None or mean.high is None:
        return f"geometric mean {_ratio(mean.ratio)} {over}"
    return f"geometric mean {_ratio(mean.ratio)} (interval {_interval(mean.low, mean.high)}) {over}"


def _tally(metric: str, verdicts: Iterable[str]) -> str:
    from bench.comparison import verdict_words

    counts = Counter(verdicts)
    known = [(name, counts[name]) for name in ("faster", "slower", "same", "unclear") if counts[name]]
    return ", ".join(f"{count} {verdict_words(metric, name)}" for name, count in known)


def _ratio(value: Any) -> str:
    return MISSING if value != value else f"{value:.4f}"


def _interval(low: float, high: float) -> str:
    return MISSING if low != low else f"{low:.4f} to {high:.4f}"


def _price(cost: Cost) -> str:
    return MISSING if cost.price_per_million_samples is None else f"{cost.price_per_million_samples:.4g}"


def _cut(text: str) -> str:
    return text if len(text) <= _LONG else f"{text[: _LONG - 1]}…"
