"""How figures look: colours that colour-blind eyes tell apart, markers and dashes beside them, light and dark.

Figures are drawn once in light colours. The neutral colours (text, grid, paper) are used for nothing else, so that
`picture` can exchange them for dark ones; the hues are kept, and stand on both papers.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image

from bench.analysis.labels import cut_apart
from bench.report.escape import plain

# Okabe and Ito, "Color Universal Design" (2008), without black and the yellow that is too pale on white
HUES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
DIVERGING = ("#B35806", "#F5F3EE", "#2166AC")
"""Below, equal to and above 1, the ends and the middle of a scale; no neutrals, so that dark paper keeps them."""
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
MAX_PANELS = 9

INK, MUTED, GRID, PAPER, FILL = "#1f2328", "#5b636d", "#dfe3e8", "#ffffff", "#eef1f4"
DARK = {INK: "#e6edf3", MUTED: "#9aa4b0", GRID: "#2d333b", PAPER: "#0d1117", FILL: "#1a2029"}

DPI = 150
WIDTH_IN = 10.0
_HEAD_IN, _FOOT_IN = 0.62, 0.08

_SEABORN: dict[str, Any] = {
    "axes.grid": True,
    "axes.linewidth": 1.25,
    "legend.title_fontsize": 12,
    "lines.solid_capstyle": "round",
    "patch.force_edgecolor": True,
    "patch.linewidth": 1,
    "xtick.bottom": False,
    "xtick.major.size": 6,
    "xtick.major.width": 1.25,
    "xtick.minor.size": 4,
    "xtick.minor.width": 1,
    "ytick.left": False,
    "ytick.major.size": 6,
    "ytick.major.width": 1.25,
    "ytick.minor.size": 4,
    "ytick.minor.width": 1,
}
"""What seaborn's context `notebook` and style `whitegrid` set, beyond `_RC` and matplotlib's defaults.

Written down, because importing seaborn imports scipy.stats, and both take longer than drawing a figure.
"""

_RC: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 6.0,
    "axes.titley": 1.0,  # where it would be put anyway, without measuring every tick label three times a drawing
    "axes.labelcolor": MUTED,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.5,
    "lines.markersize": 5.0,
    "axes.axisbelow": True,
    "patch.edgecolor": PAPER,
    "text.usetex": False,
    "mathtext.default": "regular",
    "axes.unicode_minus": True,
    "axes.formatter.use_locale": False,
    "text.parse_math": False,
    "hatch.linewidth": 0.6,
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The report's settings of matplotlib over its defaults, whatever the user's own are; put back afterwards."""
    with mpl.rc_context():
        mpl.rcdefaults()
        settings: Any = {**_SEABORN, **_RC}
        mpl.rcParams.update(settings)
        yield


def panels(
    count: int, title: str, subtitle: str, *, row_in: float = 2.75, columns: int = 3
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels under a title; unused places are left empty.

    Args:
        count: How many panels, at least 1.
        title: In bold above everything.
        subtitle: The machine, and how to read the marks.
        row_in: The height of a row in inches.
        columns: At most so many beside each other.
    """
    across = min(count, columns) if count != 4 else 2
    down = math.ceil(count / across)
    row_in = row_in * (1.35 if across == 1 else 1.15 if across == 2 else 1.0)
    height = down * row_in + _HEAD_IN + _FOOT_IN
    figure = Figure(figsize=(WIDTH_IN, height), layout="constrained")
    FigureCanvasAgg(figure)
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(rect=(0.0, 0.0, 1.0, 1 - _HEAD_IN / height), w_pad=0.06, h_pad=0.07)  # type: ignore[call-arg]
    top = 1 - 0.10 / height
    figure.text(0.008, top, title, ha="left", va="top", fontsize=13, fontweight="bold", color=INK)
    figure.text(0.008, 1 - 0.37 / height, clip(subtitle, 150), ha="left", va="top", fontsize=9, color=MUTED)
    axes = figure.subplots(down, across, squeeze=False)
    flat = list(axes.flat)
    for spare in flat[count:]:
        spare.set_visible(False)
    return figure, flat[:count]


def finish(axes: Axes, title: str, x: str = "", y: str = "", *, detail: str = "") -> None:
    """Titles of a panel (`detail` on a line of its own), and no frame but its lower and left lines."""
    axes.set_title(clip(title, TITLE_CHARACTERS), color=INK, pad=17.0 if detail else 6.0)
    if detail:
        axes.annotate(
            clip(detail, DETAIL_CHARACTERS),
            (0, 1),
            (0, 4),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=8,
            color=MUTED,
            va="bottom",
            ha="left",
            annotation_clip=False,
        )
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0)


def clip_apart(texts: Iterable[str], characters: int) -> dict[str, str]:
    """Texts that stand beside each other, each on one line and cut to fit, by the text: no two alike."""
    return {text: plain(short) for text, short in cut_apart(texts, characters).items()}


TITLE_CHARACTERS, DETAIL_CHARACTERS = 44, 52
"""Room for a panel's title, and for the line below it."""


def clip(text: str, characters: int) -> str:
    """Text on one line, cut to fit."""
    return plain(text, characters)


def batch_axis(axes: Axes, sizes: Sequence[int]) -> None:
    """A logarithmic axis of batch sizes with the sizes themselves as its ticks, at most seven."""
    ticks = sorted(set(sizes))
    keep = ticks[:: -math.ceil(len(ticks) / 7)]
    axes.set_xscale("log", base=2)
    axes.set_xticks(keep, [f"{size:,}" if size < 10_000 else f"{size / 1024:g}k" for size in keep])
    axes.set_xticks([], minor=True)
    if len(ticks) == 1:
        axes.set_xlim(ticks[0] / 2, ticks[0] * 2)
    axes.grid(visible=True, axis="x", which="major")


def log_axis(axes: Axes, which: Literal["x", "y"], low: float, high: float, *, base: int, words: Any) -> None:
    """A logarithmic axis from `low` to `high` with readable ticks.

    Args:
        axes: The panel.
        which: The axis.
        low: The smallest value drawn, above 0.
        high: The largest.
        base: 10, or 2 for bytes.
        words: Value to text.
    """
    low, high = low / 1.25, high * 1.25
    ticks = log_ticks(low, high, base)
    getattr(axes, f"set_{which}scale")("log", base=base)
    getattr(axes, f"set_{which}lim")(low, high)
    getattr(axes, f"set_{which}ticks")(ticks, [words(tick) for tick in ticks])
    getattr(axes, f"set_{which}ticks")([], minor=True)


def log_ticks(low: float, high: float, base: int) -> list[float]:
    """At most seven round values from `low` to `high`: powers of the base, or 1-2-5 steps where few powers fit."""
    first, last = math.floor(math.log(low, base)), math.ceil(math.log(high, base))
    mantissas = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)) if base == 10 else ((1,), (1, 1.25, 1.5, 1.75))
    found: list[float] = []
    for steps in mantissas:
        found = [
            m * float(base) ** e for e in range(first, last + 1) for m in steps if low <= m * float(base) ** e <= high
        ]
        if len(found) >= 3:
            break
    stride = math.ceil(len(found) / 7)
    return found[::stride] if stride > 1 else found


def luminance(colour: Sequence[float]) -> float:
    """The relative luminance of an sRGB colour, 0 to 1 (IEC 61966-2-1, as WCAG 2 takes it)."""
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def save(figure: Figure, *, dark: bool = False) -> bytes:
    """The figure as PNG at 150 dpi in at most 256 colours (a third of the bytes); equal figures give equal bytes.

    With `dark` the neutral colours are exchanged in place: save the light one first.
    """
    if dark:
        figure.set_layout_engine("none")
        _exchange(figure)
    figure.set_dpi(DPI)
    canvas: Any = figure.canvas  # of FigureCanvasAgg, see panels
    canvas.draw()  # savefig would draw everything twice
    pixels = np.asarray(canvas.buffer_rgba())
    few = Image.fromarray(pixels[..., :3]).quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    _keep_exactly(few, pixels, (DARK[PAPER], DARK[INK]) if dark else (PAPER, INK))
    buffer = io.BytesIO()
    few.save(buffer, "PNG", dpi=(DPI, DPI), compress_level=6)
    return buffer.getvalue()


def _keep_exactly(few: Image.Image, pixels: np.ndarray, colours: Sequence[str]) -> None:
    """Give the palette's entries for these colours their exact values: a paper that is off by one shows on the page.

    Args:
        few: The picture in few colours.
        pixels: In all colours, opaque, `(H, W, 4)` in bytes.
        colours: What to keep.
    """
    palette = few.getpalette()
    assert palette is not None
    whole = np.ascontiguousarray(pixels).view(np.uint32).ravel()  # one number for each pixel compares fastest
    for colour in colours:
        exact = np.array([*(round(255 * part) for part in to_rgba(colour)[:3]), 255], np.uint8)
        place = int((whole == exact.view(np.uint32)[0]).argmax())
        if whole[place] == exact.view(np.uint32)[0]:
            entry = int(few.getpixel((place % few.width, place // few.width)))  # type: ignore[arg-type]
            palette[3 * entry : 3 * entry + 3] = exact[:3].tolist()
    few.putpalette(palette)


def _exchange(figure: Figure) -> None:
    """Replace every neutral colour of every artist by its dark one."""
    exchange = {to_rgba(light): to_rgba(dark) for light, dark in DARK.items()}
    for artist in figure.findobj():
        for name in ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor"):
            getter, setter = getattr(artist, f"get_{name}", None), getattr(artist, f"set_{name}", None)
            if getter is None or setter is None:
                continue
            try:
                given = getter()
                single = isinstance(given, str | tuple) or np.ndim(given) == 1
                colours = [to_rgba(given)] if single else [to_rgba(colour) for colour in given]
            except (ValueError, TypeError):
                continue
            changed = [(*exchange.get((*colour[:3], 1.0), colour)[:3], colour[3]) for colour in colours]
            if changed != colours:
                setter(changed[0] if len(changed) == 1 else changed)
