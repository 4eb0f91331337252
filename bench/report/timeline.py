"""Memory over one training step as a picture: categories stacked, phases above, the peak's biggest tensors below."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bench.estimators.timeline import Timeline
from bench.report import theme
from bench.report.drawing import Drawing
from bench.units import GIB, KIB, MIB, format_bytes

_TOP_IN, _PLOT_IN, _AXIS_IN, _ROW_IN = 1.06, 3.5, 0.62, 0.215
_LEFT_IN, _RIGHT_IN = 0.78, 2.62
_LETTER_IN = 0.074


@dataclass(frozen=True, slots=True)
class _Layer:
    """How a category looks; colours and hatches as in the report's figure of categories."""

    part: str
    colour: str
    hatch: str = ""

    @property
    def label(self) -> str:
        return self.part.replace("_", " ")


LAYERS = (
    _Layer("parameters", theme.HUES[0]),
    _Layer("optimizer_state", theme.HUES[2]),
    _Layer("gradients", theme.HUES[4]),
    _Layer("batch", theme.HUES[5]),
    _Layer("activations", theme.HUES[1]),
    _Layer("temporaries", theme.HUES[3]),
    _Layer("workspaces", theme.HUES[3], "////"),
    _Layer("rounding", theme.MUTED, "...."),
)
"""From the bottom of the stack to its top: what stays through the step lies below what comes and goes."""

_PHASE_WORDS = {"zero_grad": "zero grad"}


def draw_timeline(timeline: Timeline, case: str, device: str) -> Drawing:
    """The picture of a timeline.

    Args:
        timeline: Of `bench.estimators.timeline`.
        case: In words; any text.
        device: Name of the device file.
    """
    with theme.style():
        bottom = _AXIS_IN + 0.36 + _ROW_IN * len(timeline.tensors)
        height = _TOP_IN + _PLOT_IN + bottom
        figure = Figure(figsize=(theme.WIDTH_IN, height))
        FigureCanvasAgg(figure)
        width = theme.WIDTH_IN - _LEFT_IN - _RIGHT_IN
        box = (_LEFT_IN / theme.WIDTH_IN, bottom / height, width / theme.WIDTH_IN, _PLOT_IN / height)
        axes = figure.add_axes(box)
        _write_titles(figure, case, device, timeline)
        _draw_step(axes, timeline)
        _draw_phases(axes, timeline, width)
        _write_parts(figure, timeline, (_LEFT_IN + width + 0.2) / theme.WIDTH_IN, (bottom + _PLOT_IN) / height)
        _write_tensors(figure, timeline, (bottom - _AXIS_IN) / height, _ROW_IN / height)
    return Drawing(
        name="timeline",
        title=f"Memory over one step: {case} on {device}",
        caption=(
            "Live memory by category after every event of the allocator, estimated by the trace. The axis counts "
            "events because a trace has no clock. The dashed line is what the allocator holds of the device."
        ),
        alt=alt_text(timeline, case, device),
        figure=figure,
        numbers=_numbers(timeline),
    )


def alt_text(timeline: Timeline, case: str, device: str) -> str:
    """What the picture shows, with its main numbers, for those who do not see it."""
    parts = sorted(_at_peak(timeline).items(), key=lambda item: -item[1])
    main = ", ".join(f"{layer.label} {format_bytes(size)}" for layer, size in parts[:3])
    first = timeline.tensors[0] if timeline.tensors else None
    biggest = f" The biggest tensor then is {first.label}, {format_bytes(first.size_bytes)}." if first else ""
    return theme.clip(
        f"Stacked areas of live memory by category over one training step of {case} on {device}: zero grad, forward, "
        f"backward, optimizer. It peaks at {format_bytes(timeline.peak_allocated_bytes)} allocated in the "
        f"{_phase_at(timeline, timeline.peak_event)}, of which {main}; "
        f"{format_bytes(timeline.peak_reserved_bytes)} are reserved.{biggest}",
        600,
    )


def _numbers(timeline: Timeline) -> pd.DataFrame:
    """One row a moment that is drawn."""
    return pd.DataFrame(
        {
            "event": timeline.events,
            "phase": [_phase_at(timeline, event) for event in timeline.events],
            **{f"{layer.part}_bytes": timeline.categories[layer.part] for layer in LAYERS},
            "allocated_bytes": timeline.allocated,
            "reserved_bytes": timeline.reserved,
        }
    )


def _phase_at(timeline: Timeline, event: int) -> str:
    """The phase that brought the moment about: it begins with the event after the moment at which it starts."""
    begun = [name for name, begin in timeline.phases if begin < max(event, 1)]
    return begun[-1] if begun else timeline.phases[0][0]


def _at_peak(timeline: Timeline) -> dict[_Layer, int]:
    place = timeline.events.index(timeline.peak_event)
    return {layer: timeline.categories[layer.part][place] for layer in LAYERS}


def _write_titles(figure: Figure, case: str, device: str, timeline: Timeline) -> None:
    height = figure.get_figheight()
    left = 0.12 / theme.WIDTH_IN
    figure.text(
        left,
        1 - 0.12 / height,
        theme.clip(f"Memory over one step: {case}", 100),
        ha="left",
        va="top",
        fontsize=13,
        fontweight="bold",
        color=theme.INK,
    )
    words = (
        f"{device} · estimated by the trace, not measured · step {timeline.step} of the training · "
        f"peak {format_bytes(timeline.peak_allocated_bytes)} allocated, "
        f"{format_bytes(timeline.peak_reserved_bytes)} reserved in this step"
    )
    figure.text(left, 1 - 0.41 / height, theme.clip(words, 150), ha="left", va="top", fontsize=9, color=theme.MUTED)


def _draw_step(axes: Axes, timeline: Timeline) -> None:
    """The stack, the lines of allocated and reserved, and the peak."""
    unit, factor = _unit(timeline.peak_allocated_bytes)
    moments = list(timeline.events)
    floor = [0] * len(moments)
    for layer in LAYERS:
        top = [low + size for low, size in zip(floor, timeline.categories[layer.part], strict=True)]
        axes.fill_between(
            moments,
            floor,
            top,
            step="post",
            facecolor=layer.colour,
            hatch=layer.hatch or None,
            edgecolor=theme.PAPER if layer.hatch else "none",
            linewidth=0.0,
        )
        floor = top
    axes.step(moments, timeline.allocated, where="post", color=theme.INK, linewidth=0.9)
    axes.step(moments, timeline.reserved, where="post", color=theme.MUTED, linewidth=1.2, linestyle=(0, (5, 2)))
    peak = timeline.peak_allocated_bytes
    axes.plot(
        [timeline.peak_event],
        [peak],
        marker="o",
        markersize=6,
        color=theme.INK,
        markeredgecolor=theme.PAPER,
        zorder=5,
        clip_on=False,
    )
    axes.set_xlim(0, max(timeline.event_count, 1))
    axes.set_ylim(0, max(timeline.peak_reserved_bytes, peak, 1) * 1.2)
    _choose_ticks(axes, factor)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.grid(visible=False, axis="x")
    axes.tick_params(length=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel("allocations and frees since the step began (events, not time)")
    axes.set_ylabel(f"memory, {unit}")
    _label_peak(axes, timeline)


def _unit(size: int) -> tuple[str, int]:
    return next(((name, factor) for name, factor in (("GiB", GIB), ("MiB", MIB)) if size >= factor), ("KiB", KIB))


def _choose_ticks(axes: Axes, factor: int) -> None:
    """Ticks at round numbers of the unit, with no more digits than they need."""
    top = axes.get_ylim()[1] / factor
    ticks = [tick for tick in MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(0, top) if 0 <= tick <= top]
    axes.set_yticks([tick * factor for tick in ticks], [f"{tick:g}" for tick in ticks])


def _label_peak(axes: Axes, timeline: Timeline) -> None:
    """The words for the peak above everything, led down to it, and those for the reserved line at its freer end."""
    event, peak = timeline.peak_event, timeline.peak_allocated_bytes
    late = event > 0.55 * timeline.event_count
    top = axes.get_ylim()[1] * 0.955
    axes.plot([event, event], [peak, top], color=theme.INK, linewidth=0.9, zorder=5)
    paper = {"facecolor": theme.PAPER, "edgecolor": "none", "pad": 0.8}
    axes.annotate(
        f"peak {format_bytes(peak)} allocated",
        (event, top),
        (-5 if late else 5, 0),
        textcoords="offset points",
        ha="right" if late else "left",
        va="center",
        fontsize=9,
        fontweight="bold",
        color=theme.INK,
        zorder=6,
        bbox=paper,
    )
    place, reserved = (0, timeline.reserved[0]) if late else (timeline.event_count, timeline.reserved[-1])
    axes.annotate(
        f"reserved {format_bytes(reserved)}",
        (place, reserved),
        (3 if late else -3, 4),
        textcoords="offset points",
        ha="left" if late else "right",
        va="bottom",
        fontsize=8.5,
        color=theme.MUTED,
        zorder=5,
        bbox=paper,
    )


def _draw_phases(axes: Axes, timeline: Timeline, width_in: float) -> None:
    """A band above the plot, one field a phase; one without room for its name has it written above."""
    ends = [begin for _, begin in timeline.phases[1:]] + [timeline.event_count]
    transform = axes.get_xaxis_transform()
    whole = max(timeline.event_count, 1)
    for number, ((name, begin), end) in enumerate(zip(timeline.phases, ends, strict=True)):
        words = _PHASE_WORDS.get(name, name)
        field = theme.GRID if number % 2 else theme.FILL
        axes.add_patch(
            Rectangle(
                (begin, 1.012),
                end - begin,
                0.062,
                transform=transform,
                facecolor=field,
                edgecolor=theme.PAPER,
                linewidth=1.0,
                clip_on=False,
            )
        )
        if number:
            axes.axvline(begin, color=theme.MUTED, linewidth=0.7, linestyle=(0, (2, 2)), zorder=4)
        if (end - begin) / whole * width_in > _LETTER_IN * len(words):
            place, up, across, upright = (begin + end) / 2, 1.042, "center", "center"
        else:
            last = number == len(ends) - 1
            place, up, across, upright = end if last else begin, 1.085, "right" if last else "left", "bottom"
        axes.text(place, up, words, transform=transform, ha=across, va=upright, fontsize=8.5, color=theme.INK)


def _write_parts(figure: Figure, timeline: Timeline, left: float, top: float) -> None:
    """The legend, in the order of the stack, with each category's bytes and share at the peak."""
    parts = _at_peak(timeline)
    whole = max(timeline.peak_allocated_bytes, 1)
    height = figure.get_figheight()
    right = 1 - 0.14 / theme.WIDTH_IN
    figure.text(left, top, "live at the peak", ha="left", va="top", fontsize=8.5, fontweight="bold", color=theme.INK)
    for row, layer in enumerate(reversed(LAYERS)):
        size = parts[layer]
        y = top - (0.32 + 0.25 * row) / height
        figure.add_artist(_swatch(layer, left, y, height))
        figure.text(left + 0.22 / theme.WIDTH_IN, y, layer.label, ha="left", va="center", fontsize=8.5, color=theme.INK)
        share = f"{size / whole * 100:.0f} %" if size >= 0.005 * whole else "< 1 %" if size else ""
        figure.text(
            right - 0.42 / theme.WIDTH_IN,
            y,
            format_bytes(size),
            ha="right",
            va="center",
            fontsize=8.5,
            color=theme.INK if size else theme.MUTED,
        )
        figure.text(right, y, share, ha="right", va="center", fontsize=8.5, color=theme.MUTED)


def _swatch(layer: _Layer, left: float, middle: float, height_in: float) -> Patch:
    """A small field of the category's colour."""
    side = 0.15
    return Rectangle(
        (left, middle - side / 2 / height_in),
        side / theme.WIDTH_IN,
        side / height_in,
        facecolor=layer.colour,
        hatch=layer.hatch or None,
        edgecolor=theme.PAPER,
        linewidth=0.0,
    )


def _write_tensors(figure: Figure, timeline: Timeline, top: float, row: float) -> None:
    """The biggest tensors at the peak, a line each."""
    layers = {layer.part: layer for layer in LAYERS}
    height = figure.get_figheight()
    left = 0.12 / theme.WIDTH_IN
    figure.text(
        left,
        top,
        "Largest tensors at the peak",
        ha="left",
        va="center",
        fontsize=8.5,
        fontweight="bold",
        color=theme.INK,
    )
    for number, tensor in enumerate(timeline.tensors, start=1):
        y = top - (number + 0.1) * row
        layer = layers[tensor.category]
        figure.add_artist(_swatch(layer, left, y, height))
        for place, text, side, colour in (
            (0.98, format_bytes(tensor.size_bytes), "right", theme.INK),
            (1.14, layer.label, "left", theme.MUTED),
            (2.24, theme.clip(tensor.label, 96), "left", theme.INK),
        ):
            figure.text(place / theme.WIDTH_IN, y, text, ha=side, va="center", fontsize=8.5, color=colour)
