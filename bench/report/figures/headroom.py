"""How much of each machine's memory a case takes, and what is left."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from bench.records import Status
from bench.report import theme
from bench.report.contents import Contents
from bench.report.drawing import Drawing
from bench.report.figures.throughput import legend
from bench.report.kinds import FigureKind
from bench.report.machines import (
    SAFE_SHARE,
    Board,
    boundary,
    extreme,
    lay_out_machines,
    machine_handles,
    with_memory_shares,
)
from bench.units import format_bytes

_SHARES = ["memory_of", "memory_bytes", "limit_bytes", "memory_share"]
_COLUMNS = ["panel", "detail", "drawn", "machine", "batch_size", "status", *_SHARES, "headroom_bytes"]


def draw(contents: Contents) -> Drawing | None:
    """A panel a model, data set and combination of the other axes; nothing for a single machine."""
    shares = with_memory_shares(contents.summary)
    if len(contents.machines) < 2 or shares.empty:
        return None
    summary = contents.summary.assign(**{name: shares[name] for name in _SHARES})
    board = lay_out_machines(summary, contents.machines, summary["memory_share"].notna())
    board.frame["headroom_bytes"] = board.frame["limit_bytes"] - board.frame["memory_bytes"]
    figure, panels = theme.panels(
        len(board.pairs),
        "Memory headroom, machine by machine",
        f"share of the machine's memory · dotted: {SAFE_SHARE * 100:.0f} %, a rule of thumb · "
        "cross: first batch out of memory",
    )
    for axes, pair in zip(panels, board.pairs, strict=True):
        _draw_panel(axes, board, pair)
    out = bool((board.frame["drawn"] & (board.frame["status"] == Status.OOM)).any())
    legend(figure, machine_handles(board, out_of_memory=out))
    kinds = [str(kind) for kind in dict.fromkeys(shares["memory_of"])]
    return Drawing(
        name="headroom",
        title="Memory headroom, machine by machine",
        caption=(
            "The peak of each case as a share of its machine's memory; what is missing to 100 % is free. Counted: "
            f"{'; '.join(kinds)}. The dotted line is a rule of thumb, to keep to {SAFE_SHARE * 100:.0f} % of the "
            "memory. A cross marks the first batch size that ran out of memory; its peak is unknown, so it stands at "
            f"the edge. {board.left_out}"
        ).strip(),
        alt=_alt(shares),
        figure=figure,
        numbers=board.frame[_COLUMNS].reset_index(drop=True),
    )


def _draw_panel(axes: Axes, board: Board, pair: tuple[str, str]) -> None:
    rows = board.rows(pair)
    theme.batch_axis(axes, [int(size) for size in rows["batch_size"]])
    highest = rows["memory_share"].max()
    firsts = {machine: edge[0] for machine in board.looks if (edge := boundary(board.rows(pair, machine)))}
    sizes = list(firsts.values())
    stacks = {machine: sizes[:place].count(size) for place, (machine, size) in enumerate(firsts.items())}
    top = max(112.0 + 7 * max(stacks.values(), default=0), float(highest) * 106 if pd.notna(highest) else 0.0)
    axes.set_ylim(0, top)
    axes.set_yticks([0, 20, 40, 60, 80, 100], ["0", "20 %", "40 %", "60 %", "80 %", "100 %"])
    axes.axhspan(100, top, color=theme.FILL, linewidth=0, zorder=0)
    axes.axhline(100, color=theme.INK, linewidth=1.0, zorder=1.5)
    axes.axhline(SAFE_SHARE * 100, color=theme.MUTED, linewidth=1.0, linestyle=(0, (1, 2)), zorder=1.5)
    for machine, look in board.looks.items():
        line = board.rows(pair, machine)
        axes.plot(
            line["batch_size"].to_numpy(dtype=float),
            line["memory_share"].to_numpy(dtype=float) * 100,
            color=look.colour,
            marker=look.marker,
            linestyle=look.dashes,
            markeredgecolor=theme.PAPER,
            markeredgewidth=0.6,
        )
        if machine in firsts:
            axes.plot(
                float(firsts[machine]),
                105.5 + 7 * stacks[machine],
                marker="X",
                color=look.colour,
                markersize=7,
                markeredgecolor=theme.PAPER,
                markeredgewidth=0.6,
                linestyle="none",
            )
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
