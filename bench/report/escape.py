"""Text from results made harmless for the place that it goes to."""

from __future__ import annotations

import functools
import re
import unicodedata

MAX_CHARACTERS = 400
"""Longer texts are cut: a reason is a sentence, not a log."""

_UNSEEN = ("Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp")
_MARKDOWN = re.compile(r"([\\`*\[\]<>#|~&{}$@!^])")
_OUTER_UNDERSCORE = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_ADDRESS = re.compile(r"(?i)(https?|ftp|mailto)(:)|(www)(\.)")
_LINE_START = re.compile(r"^(\d+)([.)])|^([-+=])")
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def plain(text: object, limit: int = MAX_CHARACTERS) -> str:
    """One line of visible characters; controls, direction marks and other unseen ones are spelled out as `U+202E`."""
    line = " ".join(str(text)[: 10 * limit].split())
    shown = line if line.isprintable() else "".join(_visible(mark) for mark in line)
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def markdown(text: object, limit: int = MAX_CHARACTERS) -> str:
    """Plain text for a Markdown paragraph or table cell: no markup, table, link or tag can come of it."""
    line = _MARKDOWN.sub(r"\\\1", plain(text, limit))
    line = _OUTER_UNDERSCORE.sub(r"\\_", line)
    return _ADDRESS.sub(lambda match: f"{match[1] or match[3]}\\{match[2] or match[4]}", line)


def markdown_start(line: str) -> str:
    """Escaped text that begins a line: it becomes no list, heading rule or quotation."""
    return _LINE_START.sub(lambda match: f"{match[1]}\\{match[2]}" if match[1] else f"\\{match[3]}", line)


def markdown_code(text: object, *, in_table: bool = False) -> str:
    """Plain text as a Markdown code span, fenced with more backticks than it holds."""
    line = plain(text) or " "
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    line = line.replace("|", "\\|") if in_table else line
    return f"{fence}{pad}{line}{pad}{fence}"


def markdown_fence(text: str, language: str = "") -> str:
    """Text as a fenced block, with a fence that is longer than any inside."""
    body = "\n".join(verbatim(text).splitlines())
    fence = "`" * max(3, max((len(run) for run in re.findall("`+", body)), default=0) + 1)
    return f"{fence}{language}\n{body}\n{fence}"


def verbatim(text: str, limit: int = 20_000) -> str:
    """Several lines with their indentation, unseen characters spelled out, cut at `limit` characters."""
    lines = ["".join(_visible(mark) for mark in line.expandtabs(4)) for line in text[:limit].splitlines()]
    return "\n".join([*lines, "… (cut)"] if len(text) > limit else lines)


def csv_cell(value: object) -> object:
    """A text that a spreadsheet would take for a formula gets an apostrophe in front; other values are kept."""
    return _csv_text(value) if isinstance(value, str) else value


@functools.lru_cache(maxsize=65_536)
def _csv_text(value: str) -> str:
    text = plain(value, limit=2000)
    return f"'{text}" if value.startswith(_FORMULA_STARTS) or text.startswith(_FORMULA_STARTS) else text


def _visible(mark: str) -> str:
    """The character, or its number where it would not be seen."""
    return f"U+{ord(mark):04X}" if unicodedata.category(mark) in _UNSEEN else mark
