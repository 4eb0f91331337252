"""What a section says, apart from how it is written down: Markdown and HTML render the same blocks.

Text in blocks is plain text. It may come from results that somebody else made, so nothing in it is ever markup:
emphasis is `Strong` and `Code`, and the renderers escape the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Strong:
    """Words that stand out."""

    text: str


@dataclass(frozen=True, slots=True)
class Code:
    """A name, a command, a path: set in a fixed-width face."""

    text: str


@dataclass(frozen=True, slots=True)
class Link:
    """Words that lead to a file of the report; `target` is ours, relative, and never from results."""

    text: str
    target: str


Inline = str | Strong | Code | Link
Words = str | tuple[Inline, ...]


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A paragraph."""

    words: Words


@dataclass(frozen=True, slots=True)
class Headline:
    """The sentence that the report is about, set large."""

    words: Words


@dataclass(frozen=True, slots=True)
class Notice:
    """A remark that must not be missed: `warning` weakens the numbers, `note` bounds them, `good` says all is well."""

    level: Literal["warning", "note", "good"]
    words: Words


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list."""

    items: Sequence[Words]


@dataclass(frozen=True, slots=True)
class Table:
    """A table; columns named in `numeric` are set flush right.

    Attributes:
        head: Column titles.
        rows: Cells, each row as long as `head`.
        numeric: Positions of columns of numbers.
        caption: What the table holds.
        row_levels: A level for each row, or nothing; `warning` rows stand out in HTML.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Words]]
    numeric: frozenset[int] = frozenset()
    caption: str = ""
    row_levels: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Explorer:
    """A table of cases that the page's script replaces by one that is sorted, filtered, drawn and compared.

    Attributes:
        table: What stands there without scripts, and in Markdown.
        data: What the script works on, as JSON has it; `page.js` says how it is made up.
    """

    table: Table
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure with its caption and a link to its numbers.

    Attributes:
        name: Of its files: `figures/<name>.png` and `.csv`.
        title: The question that it answers, set above it.
        caption: How to read it.
        alt: What it shows, for those who do not see it.
    """

    name: str
    title: str
    caption: str
    alt: str


@dataclass(frozen=True, slots=True)
class Listing:
    """Text that is shown as it stands: a command, a configuration."""

    text: str
    language: str = ""


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading inside a section."""

    text: str


@dataclass(frozen=True, slots=True)
class Fold:
    """Blocks behind a line that opens them; printed in full."""

    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)


Block = Paragraph | Headline | Notice | Bullets | Table | Explorer | Picture | Listing | Heading | Fold
