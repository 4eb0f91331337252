"""Figures that are laid out and not painted: all their numbers and words, and none of the seconds of their pixels.

Tests whose subject is a report's text or files use it: a whole file with the fixture `sketched`, others with `sketching`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save(figure: Figure, *, dark: bool = False) -> bytes:
    """In place of `bench.report.theme.save`: an empty PNG of the figure's size with a hash of what the figure shows."""
    from matplotlib.collections import Collection
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle
    from matplotlib.text import Text
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    from bench.report import theme

    shown = hashlib.sha256(b"dark" if dark else b"light")
    for artist in figure.findobj(lambda artist: isinstance(artist, Text | Line2D | Rectangle | Collection)):
        match artist:
            case Text():
                shown.update(artist.get_text().encode())
            case Line2D():
                shown.update(artist.get_xydata().tobytes())
            case Rectangle():
                shown.update(artist.get_bbox().get_points().tobytes())
            case Collection():
                shown.update(artist.get_offsets().tobytes())
    figure.set_dpi(theme.DPI)
    note = PngInfo()
    note.add_text("shown", shown.hexdigest())
    buffer = io.BytesIO()
    Image.new("1", figure.canvas.get_width_height()).save(buffer, "PNG", pnginfo=note, compress_level=1)
    return buffer.getvalue()


@contextlib.contextmanager
def sketching() -> Iterator[None]:
    """Reports that are rendered within have figures that are not painted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.report.theme.save", save)
        yield
