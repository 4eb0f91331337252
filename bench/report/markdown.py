"""Blocks as GitHub's Markdown: relative images, no HTML but the folds and nothing from results unescaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.report import blocks as b
from bench.report.blocks import Block, Inline, Words
from bench.report.escape import markdown, markdown_code, markdown_fence, markdown_start

_LONG = 4000
"""Sentences of ours may be longer than the texts from results inside them."""

_ALERTS = {"warning": "WARNING", "note": "NOTE", "good": "TIP"}


def render_markdown(title: str, sections: Iterable[tuple[str, Sequence[Block]]]) -> str:
    """The whole report.

    Args:
        title: Of the report.
        sections: Heading and blocks of each; the first has no heading.
    """
    parts = [f"# {markdown(title)}"]
    for heading, blocks in sections:
        parts += [f"## {markdown(heading)}"] if heading else []
        parts += [_block(block) for block in blocks]
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: Block) -> str:
    match block:
        case b.Answer(words):
            return f"**{_strong(words)}**"
        case b.Paragraph(words):
            return markdown_start(_words(words))
        case b.Notice(level, words):
            return f"> [!{_ALERTS[level]}]\n> {markdown_start(_words(words))}"
        case b.Bullets(items):
            return "\n".join(f"- {markdown_start(_words(item))}" for item in items)
        case b.Heading(text):
            return f"### {markdown(text)}"
        case b.Listing(text, language):
            return markdown_fence(text, language)
        case b.Table():
            return _table(block)
        case b.Picture(drawing):
            image = f"![{markdown(drawing.alt, _LONG)}](figures/{drawing.name}.png)"
            numbers = f"[numbers](figures/{drawing.name}.csv)"
            caption = markdown_start(markdown(drawing.caption, _LONG))
            return f"### {markdown(drawing.title)}\n\n{image}\n\n{caption} ({numbers})"
        case b.Fold(title, blocks):
            inside = "\n\n".join(_block(item) for item in blocks)
            return f"<details>\n<summary>{markdown(title)}</summary>\n\n{inside}\n\n</details>"


def _table(table: b.Table) -> str:
    ruler = ["---:" if place in table.numeric else "---" for place in range(len(table.head))]
    lines = [
        _row([markdown(title) for title in table.head]),
        _row(ruler),
        *(_row([_words(cell, in_table=True) for cell in row]) for row in table.rows),
    ]
    caption = f"{markdown_start(markdown(table.caption, _LONG))}\n\n" if table.caption else ""
    return caption + "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell or ' ' for cell in cells)} |"


def _words(words: Words, *, in_table: bool = False) -> str:
    parts: tuple[Inline, ...] = (words,) if isinstance(words, str) else words
    return "".join(_inline(part, in_table) for part in parts)


def _inline(part: Inline, in_table: bool) -> str:
    match part:
        case b.Strong(text):
            return f"**{markdown(text.rstrip())}**{' ' if text.endswith(' ') else ''}"
        case b.Code(text):
            return markdown_code(text, in_table=in_table)
        case b.Link(text, target):
            return f"[{markdown(text)}]({target})"
        case str():
            return _edges(part)


def _edges(text: str) -> str:
    """Escaped text that keeps a space at its ends, so that parts of a sentence stay apart."""
    body = markdown(text, _LONG)
    return f"{' ' if text[:1] == ' ' and body else ''}{body}{' ' if text[-1:] == ' ' else ''}"


def _strong(words: Words) -> str:
    parts: tuple[Inline, ...] = (words,) if isinstance(words, str) else words
    return "".join(markdown(part if isinstance(part, str) else part.text, _LONG) for part in parts).strip()
