"""How much of each machine's memory a case takes, and what is left."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from bench.records import Status
from bench.report import theme
from bench.report.contents import Contents, FigureKind
from bench.report.drawing import Drawing
from bench.report.hardware import SAFE_SHARE, boundary, extreme, with_memory_shares
from bench.report.layout import EDGE, Layout, draw_legend, draw_lines, lay_out_machines, line_handles
from bench.units import format_bytes

_SHARES = ["memory_of", "memory_bytes", "limit_bytes", "memory_share"]
_KNOWN = ["machine", "batch_size", "status", *_SHARES]


def draw(contents: Contents) -> Drawing | None:
    """A panel a model, data set and combination of the other axes; nothing for a single machine."""
    shares = with_memory_shares(contents.summary)
    if len(contents.machines) < 2 or shares.empty:
        return None
    summary = contents.summary.assign(**{name: shares[name] for name in _SHARES})
    columns = [*_KNOWN, "peak_allocated_bytes"]
    layout = lay_out_machines(summary, columns, contents.machines, summary["memory_share"].notna())
    layout.frame["headroom_bytes"] = layout.frame["limit_bytes"] - layout.frame["memory_bytes"]
    figure, panels = theme.panels(
        len(layout.pairs),
        "Memory headroom, machine by machine",
        f"share of the machine's memory · dotted: {SAFE_SHARE * 100:.0f} %, a rule of thumb · "
        "cross: first batch out of memory",
    )
    for axes, pair in zip(panels, layout.pairs, strict=True):
        _draw_panel(axes, layout, pair)
    out = bool((layout.frame["drawn"] & (layout.frame["status"] == Status.OOM)).any())
    draw_legend(figure, line_handles(layout, out_of_memory=out))
    kinds = [str(kind) for kind in dict.fromkeys(shares["memory_of"])]
    return Drawing(
        name="headroom",
        title="How much of its memory is left on each machine?",
        caption=(
            "The peak of each case as a share of its machine's memory; what is missing to 100 % is free. Counted: "
            f"{'; '.join(kinds)}. The dotted line is a rule of thumb, to keep to {SAFE_SHARE * 100:.0f} % of the "
            "memory. A cross marks the first batch size that ran out of memory; its peak is unknown, so it stands at "
            f"the edge. {layout.left_out}"
        ).strip(),
        alt=_alt(shares),
        figure=figure,
        numbers=layout.frame[["panel", "detail", "drawn", *_KNOWN, "headroom_bytes"]].reset_index(drop=True),
    )


def _draw_panel(axes: Axes, layout: Layout, pair: tuple[str, str]) -> None:
    rows = layout.rows(pair)
    theme.batch_axis(axes, [int(size) for size in rows["batch_size"]])
    highest = rows["memory_share"].max()
    firsts = {machine: edge[0] for machine in layout.looks if (edge := boundary(layout.rows(pair, machine)))}
    sizes = list(firsts.values())
    stacks = {machine: sizes[:place].count(size) for place, (machine, size) in enumerate(firsts.items())}
    top = max(112.0 + 7 * max(stacks.values(), default=0), float(highest) * 106 if pd.notna(highest) else 0.0)
    axes.set_ylim(0, top)
    axes.set_yticks([0, 20, 40, 60, 80, 100], ["0", "20 %", "40 %", "60 %", "80 %", "100 %"])
    axes.axhspan(100, top, color=theme.FILL, linewidth=0, zorder=0)
    axes.axhline(100, color=theme.INK, linewidth=1.0, zorder=1.5)
    axes.axhline(SAFE_SHARE * 100, color=theme.MUTED, linewidth=1.0, linestyle=(0, (1, 2)), zorder=1.5)
    draw_lines(axes, rows.assign(percent=rows["memory_share"].astype(float) * 100), layout, "percent")
    for machine, first in firsts.items():
        height, colour = 105.5 + 7 * stacks[machine], layout.looks[machine].colour
        axes.plot(float(first), height, marker="X", color=colour, markersize=7, linestyle="none", **EDGE)
    theme.finish(axes, pair[0], "batch size", "of the machine's memory", detail=pair[1])


def _alt(shares: pd.DataFrame) -> str:
    """The fullest case of each machine."""
    parts = []
    for machine, rows in shares.groupby("machine", sort=False):
        full = extreme(rows, "memory_share")
        parts.append(
            f"{machine} with {format_bytes(float(full['limit_bytes']))} is filled to "
            f"{full['memory_share'] * 100:.0f} % by {full['model']} at batch {full['batch_size']}"
        )
    return f"Lines of the share of memory in use over batch size, one a machine. {'; '.join(parts)}."


FIGURE = FigureKind(order=5, draw=draw)
