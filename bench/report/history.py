"""The page of a history: each case as a line over results, where its level changed, and what else differs there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from bench import __version__
from bench.comparison import METRICS, History, HistoryChange, Metric, date_words, difference_words, verdict_words
from bench.report import theme
from bench.report.blocks import Block, Bullets, Code, Heading, Headline, Notice, Paragraph, Picture, Table, Words
from bench.report.drawing import Drawing, to_csv
from bench.report.layout import EDGE, draw_intervals, tick_bytes, tick_rate, tick_seconds
from bench.report.render import Image, render_html, render_markdown, write_files
from bench.stats import LEAST_RESULTS
from bench.units import MISSING, counted, format_frac

LINE, WORSE, BETTER = theme.HUES[:3]
_MOST_TICKS = 8
_ABSURD = 1e24
"""In any unit: a point whose interval reaches it is in the CSV and not drawn, as no axis holds it beside others."""
_TICKS = {"_bytes": tick_bytes, "_per_s": tick_rate, "_s": tick_seconds}


def render_history(history: History, target: Path) -> Path:
    """Write `index.html` (self-contained), `report.md` and `figures/` of a history; equal histories give equal bytes.

    Returns:
        The path of the page to open.

    Raises:
        StoreError: The folder cannot be written.
    """
    with theme.style():
        drawn = [_draw(history, METRICS[name]) for name in dict.fromkeys(history.points["metric"])]
        images = {item.name: Image(theme.save(item.figure), theme.save(item.figure, dark=True)) for item in drawn}
    pictures = [Picture(item.name, item.title, item.caption, item.alt) for item in drawn]
    built: list[tuple[str, Sequence[Block]]] = [
        ("", [Headline(history.headline), *_remarks(history), pictures[0]]),
        ("Changes", _changes(history)),
        ("More figures", pictures[1:]),
        ("Cases", [_cases(history)]),
        ("Results", [_results(history)]),
        ("How to read it", [Bullets(_reading(history))]),
    ]
    built = [(title, blocks) for title, blocks in built if blocks]
    title = f"History of {counted(len(history.results), 'result')}"
    files = {f"figures/{name}.png": image.light for name, image in images.items()}
    files |= {f"figures/{item.name}.csv": to_csv(item.numbers).encode() for item in drawn}
    files["report.md"] = render_markdown(title, built).encode()
    files["index.html"] = render_html(title, built, images, __version__).encode()
    write_files(target, files)
    return target / "index.html"


def _p_words(p_value: float) -> str:
    """A p-value, rounded; none is printed as 0."""
    return "< 0.0001" if p_value < 1e-4 else f"{p_value:.2g}"


def _remarks(history: History) -> list[Block]:
    """What to mind, a line each."""
    blocks: list[Block] = []
    for item in history.broken:
        before, after = (history.words(place) for place in (item.before_result, item.after_result))
        reason = f" ({item.reason})" if item.reason else ""
        differs = ", ".join(difference_words(item.differences)) or "nothing that is recorded"
        ended = f"{item.label}: ran in {before}, {item.status}{reason} in {after}"
        blocks.append(Notice("warning", f"{ended}. What differs between them: {differs}."))
    return blocks + [Notice("note", note) for note in history.notes]


def _changes(history: History) -> list[Block]:
    """The changes by the pair of results between which they lie, the newest first."""
    several = history.points["machine"].nunique() > 1
    blocks: list[Block] = []
    pairs = sorted({(change.after_result, change.before_result) for change in history.changes}, reverse=True)
    for after, before in pairs:
        here = [change for change in history.changes if (change.after_result, change.before_result) == (after, before)]
        blocks.append(Heading(f"{history.words(before)} → {history.words(after)}"))
        told = {str(item): item for change in here for item in change.differences}
        words: list[Words] = [(Code(text),) for text in difference_words(list(told.values()))]
        if words:
            blocks += [Paragraph("What differs between the two:"), Bullets(words)]
        else:
            blocks.append(Paragraph("Nothing that is recorded differs between the two."))
        interval = f"{history.confidence * 100:g} % interval"
        head = ("case", "metric", "before", "after", "ratio", interval, "p", "verdict")
        rows = [_change_row(change, several=several) for change in here]
        levels = ["warning" if change.regression else "" for change in here]
        blocks.append(Table(head, rows, frozenset(range(2, 7)), row_levels=levels))
    return blocks


def _change_row(change: HistoryChange, *, several: bool) -> list[Words]:
    metric, verdict = METRICS[change.metric], verdict_words(change.metric, change.verdict)
    return [
        f"{change.label}, {change.machine}" if several else change.label,
        metric.label,
        metric.show(change.before),
        metric.show(change.after),
        f"{change.ratio:.4f}",
        f"{change.low:.4f} to {change.high:.4f}",
        _p_words(change.p_adjusted),
        f"{verdict}: a new regression" if change.regression else verdict,
    ]


def _cases(history: History) -> Table:
    """One row per line and metric."""
    several = history.points["machine"].nunique() > 1
    rows: list[list[Words]] = []
    for (line, name), points in history.points.groupby(["line", "metric"], sort=False):
        metric, known = METRICS[str(name)], points["middle"].dropna()
        first, newest = (float(known.iloc[place]) if len(known) else None for place in (0, -1))
        changes = [change for change in history.changes if (change.line, change.metric) == (line, name)]
        row = points.iloc[0]
        ratio = MISSING if first is None or newest is None else format_frac(newest / first - 1)
        shown = [MISSING if value is None else metric.show(value) for value in (first, newest)]
        label = f"{row['label']}, {row['machine']}" if several else str(row["label"])
        rows.append([label, metric.label, str(len(known)), *shown, ratio, str(len(changes))])
    head = ("case", "metric", "results", "first", "newest", "newest over first", "changes")
    return Table(
        head, rows, frozenset(range(2, 7)), "Each case on each model of device; the difference is not a verdict"
    )


def _results(history: History) -> Table:
    rows = [
        [str(place + 1), date_words(item.started_unix_s), item.name, *(value or MISSING for value in item[2:])]
        for place, item in enumerate(history.results)
    ]
    head = ("", "first run, UTC", "result", "machine", "torch", "driver", "commit")
    return Table(
        head, [[*row[:6], row[6][:12]] for row in rows], frozenset({0}), "In order of time, as runs recorded it"
    )


def _reading(history: History) -> list[Words]:
    share = f"{(1 - history.confidence) * 100:.3g} %"
    return [
        "A point is the geometric mean of one number per process; its bar is the interval over processes. A hollow "
        "point is of one process and does not count. A level is the mean of the results between two changes.",
        "A change is called where levels differ by more than the differences between results explain, and those "
        f"between processes, and by at least {history.margin * 100:g} %. Where nothing changes, at most {share} of "
        "such histories have any change of a metric, over all of its cases; docs/history.md has the simulations.",
        f"That needs {LEAST_RESULTS} results of two or more processes, or results that were interleaved: these are "
        "compared with their neighbours by their processes.",
        "A change lies between two results. What else differs between them is listed; whether that is the cause is not "
        "known.",
        "A regression is new if the newest result is the first with which it can be seen.",
    ]


def _draw(history: History, metric: Metric) -> Drawing:
    """The lines of one metric, those that changed first."""
    points = history.points[history.points["metric"] == metric.name]
    changes = [change for change in history.changes if change.metric == metric.name]
    rank = {change.line: 1 for change in changes} | {change.line: 0 for change in changes if change.regression}
    lines = sorted(dict.fromkeys(points["line"]), key=lambda line: (rank.get(line, 2), line))
    shown = lines[: theme.MAX_PANELS]
    machines = list(dict.fromkeys(points["machine"]))
    subtitle = f"{', '.join(machines)}. Bars: {history.confidence * 100:g} % intervals over processes; steps: levels"
    figure, panels = theme.panels(len(shown), f"{metric.label.capitalize()} over results", subtitle)
    titles = points.drop_duplicates("line").set_index("line")
    names = theme.clip_apart(titles["label"], theme.TITLE_CHARACTERS)
    for axes, line in zip(panels, shown, strict=True):
        of_line = points[points["line"] == line]
        _draw_line(axes, of_line, [change for change in changes if change.line == line], metric)
        _name_results(axes, history)
        detail = str(titles["machine"][line]) if len(machines) > 1 else ""
        theme.finish(axes, names[titles["label"][line]], detail=detail)
    more = f" {counted(len(lines) - len(shown), 'more line')} did not fit and are in the CSV (drawn is false)."
    found = [f"{change.label}: {change.ratio:.3f} at {history.results[change.after_result].name}" for change in changes]
    named = [history.results[place] for place in points["result"]]
    numbers = points[["label", "machine", "middle", "low", "high", "n", "level", "status"]].assign(
        drawn=points["line"].isin(shown)
    )
    numbers.insert(0, "result", [item.name for item in named])
    numbers.insert(1, "started_unix_s", [item.started_unix_s for item in named])
    return Drawing(
        f"history_{metric.name}",
        f"How did {metric.label} change over the results?",
        "Dashed lines mark changes of level: orange for the worse, green for the better. Hollow points do not count."
        + (more if len(lines) > len(shown) else ""),
        f"{counted(len(lines), 'line')} over {counted(len(history.results), 'result')}. "
        + ("; ".join(found[:6]) or "No change was found")
        + ".",
        figure,
        numbers,
    )


def _draw_line(axes: Axes, points: pd.DataFrame, changes: Sequence[HistoryChange], metric: Metric) -> None:
    known = points[points[["middle", "low", "high"]].max(axis=1) < _ABSURD]
    place, middle, level = (known[name].to_numpy(dtype=float) for name in ("result", "middle", "level"))
    counts = known["n"].to_numpy() > 1
    spans = known.loc[counts, ["result", "low", "high"]].to_numpy(dtype=float)
    draw_intervals(axes, spans, [LINE] * len(spans))
    axes.plot(place, middle, color=LINE, linewidth=0.8, alpha=0.5)
    for chosen, face in ((counts, LINE), (~counts, theme.PAPER)):
        rim: Mapping[str, Any] = EDGE if face == LINE else {"markeredgecolor": LINE, "markeredgewidth": 1.2}
        axes.plot(place[chosen], middle[chosen], marker="o", linestyle="none", color=LINE, markerfacecolor=face, **rim)
    if len(place):
        axes.step(place, level, where="mid", color=theme.MUTED, linewidth=1.2, zorder=1.8)
    for change in changes:
        colour = WORSE if change.verdict == "slower" else BETTER
        axes.axvline((change.before_result + change.after_result) / 2, color=colour, linestyle="--", linewidth=1.5)
    ends = np.concatenate([middle, spans[:, 1:].ravel()])
    if len(ends):
        low, high = float(ends.min()), float(ends.max())
        spare = max(0.12 * (high - low), 0.02 * high)  # numbers that are equal to the byte keep a sensible axis
        axes.set_ylim(max(low - spare, 0.0), high + spare)
    bottom, top = limits = axes.get_ylim()
    ticks = np.asarray(axes.get_yticks())
    if metric.name.endswith("_bytes"):  # at round numbers of the unit
        unit = 1024.0 ** min(4, int(math.log(max(top, 1.0), 1024)))
        ticks = np.asarray(MaxNLocator(6).tick_values(bottom / unit, top / unit)) * unit
    words = next(words for ending, words in [*_TICKS.items(), ("", "{:.3g}".format)] if metric.name.endswith(ending))
    axes.set_yticks(ticks, [words(tick) for tick in ticks])
    axes.set_ylim(limits)


def _name_results(axes: Axes, history: History) -> None:
    """The results below the axis, by name; the newest and as many others as fit."""
    count = len(history.results)
    stride = -(-count // _MOST_TICKS)
    shown = range((count - 1) % stride, count, stride)
    names = theme.clip_apart([item.name for item in history.results], 14)
    labels = [names[history.results[place].name] for place in shown]
    axes.set_xlim(-0.5, count - 0.5)
    axes.set_xticks(list(shown), labels, rotation=30, ha="right", rotation_mode="anchor")
