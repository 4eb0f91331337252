"""A ranking of GPUs as a picture: a line of its interval for each, the best on top."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from bench.estimators.choosing import By, Offer, Ranking
from bench.report import theme
from bench.report.drawing import Drawing
from bench.units import format_energy, format_money, format_span

_ROW_IN, _AXIS_IN = 0.19, 0.55
_SPANS_S = [unit * count for unit in (1, 60, 3600) for count in (1, 2, 5, 10, 30)] + [
    86_400 * count * ten for ten in (1, 10, 100, 1000) for count in (1, 2, 5)
]
"""Round lengths of time, for ticks."""


def draw_ranking(ranking: Ranking, case: str) -> Drawing:
    """The picture of a ranking of at least one GPU.

    Args:
        ranking: Of `bench.estimators.choosing`.
        case: In words; any text.
    """
    what = {"time": "Time", "energy": "Energy", "cost": "Cost"}[ranking.by]
    title = f"{what} of {ranking.samples:,} samples: {case}"
    with theme.style():
        height = len(ranking.offers) * _ROW_IN + _AXIS_IN
        room = f"each GPU at the batch within {ranking.fraction * 100:.0f} % of its memory"
        subtitle = f"estimated, not measured · {room} · lines: 90 % intervals"
        figure, (axes,) = theme.panels(1, title, subtitle, row_in=height / 1.35)
        _draw(axes, ranking)
    return Drawing(
        name="choose",
        title=title,
        caption=(
            "Points are estimates; nine of ten measurements lie on the line. GPUs whose lines overlap are not told "
            "apart."
        ),
        alt=theme.clip(f"{title}. {ranking.sentence}.", 400),
        figure=figure,
        numbers=pd.DataFrame([_numbers(offer, ranking.by) for offer in ranking.offers]),
    )


def _draw(axes: Axes, ranking: Ranking) -> None:
    figures = [figure for offer in ranking.offers if (figure := offer.figure(ranking.by)) is not None]
    places = list(range(len(figures)))
    colours = [theme.HUES[0] if offer.is_clear else theme.HUES[1] for offer in ranking.offers]
    axes.hlines(places, [one.low for one in figures], [one.high for one in figures], colors=colours, linewidth=2.0)
    axes.scatter([one.point for one in figures], places, c=colours, s=22, zorder=3)
    low, high = min(one.low for one in figures), max(one.high for one in figures)
    theme.log_axis(axes, "x", low, high, base=10, words=lambda value: words(value, ranking.by))
    if ranking.by == "time" and len(spans := [one for one in _SPANS_S if low / 1.25 <= one <= high * 1.25]) > 1:
        spans = spans[:: -(-len(spans) // 7)]
        axes.set_xticks(spans, [format_span(one) for one in spans])
    axes.set_yticks(places, [theme.clip(f"{offer.device} {offer.rank_words}", 40) for offer in ranking.offers])
    axes.set_ylim(len(figures) - 0.4, -0.6)
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    if any(offer.is_clear for offer in ranking.offers) and not all(offer.is_clear for offer in ranking.offers):
        for colour, label in ((theme.HUES[0], "told from all others"), (theme.HUES[1], "overlaps with others")):
            axes.plot([], [], color=colour, marker="o", label=label)
        axes.legend(loc="lower left")
    theme.finish(axes, "", f"{ranking.by}, lower is better (logarithmic)")


def _numbers(offer: Offer, by: By) -> dict[str, object]:
    figure = offer.figure(by)
    assert figure is not None
    unit = {"time": "_s", "energy": "_j", "cost": ""}[by]
    return {
        "device": offer.device,
        "rank": offer.rank,
        "rank_best": offer.rank_best,
        "rank_worst": offer.rank_worst,
        "batch_size": offer.placement.batch_size,
        f"{by}{unit}": figure.point,
        f"{by}_low{unit}": figure.low,
        f"{by}_high{unit}": figure.high,
        "drawn": True,
    }


def words(value: float, by: By) -> str:
    """A figure of a ranking for people."""
    if by == "time":
        return format_span(value)
    return format_energy(value) if by == "energy" else format_money(value)
