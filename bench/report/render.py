"""Results folders in, a report's folder out: blocks as GitHub's Markdown, and as one HTML page.

Markdown has relative images, no HTML but the folds, and nothing from results unescaped. The page needs nothing beside
it: its images and scripts are inside, and it loads nothing. Its content policy names the hashes of its style and its
scripts, so that nothing else in it is ever run; what the scripts work on is JSON, and they put it in as text alone.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from bench import __version__
from bench.analysis import Findings, damaged_parts, judge, summarise_cases, told_reproductions
from bench.errors import StoreError
from bench.fingerprint import code_key
from bench.folders import figures_folder
from bench.forks import Lost, Work, work_apart
from bench.report import blocks as b
from bench.report import sections
from bench.report.blocks import Block, Inline, Picture, Words
from bench.report.contents import Contents, FigureKind, Section, all_of
from bench.report.drawing import to_csv
from bench.report.escape import markdown, markdown_code, markdown_fence, markdown_start, plain, verbatim
from bench.report.hardware import Hardware, compare_machines, find_baseline
from bench.store import DATA_FOLDER, Loaded, Notes, consolidate, planned_runs, read_results
from bench.store.parts import clear_leftovers, whole_or_absent

_LONG = 4000
"""Sentences of ours may be longer than the texts from results inside them."""

_ALERTS = {"warning": "WARNING", "note": "NOTE", "good": "TIP"}


def render_markdown(title: str, sections: Iterable[tuple[str, Sequence[Block]]]) -> str:
    """The whole report as Markdown.

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
        case b.Headline(words):
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
        case b.Table() | b.Explorer():
            return _table(block.table if isinstance(block, b.Explorer) else block)
        case b.Picture(name, title, caption, alt):
            head = f"### {markdown(title)}\n\n"
            image = f"![{markdown(alt, _LONG)}](figures/{name}.png)"
            below = f"{markdown_start(markdown(caption, _LONG))} ([numbers](figures/{name}.csv))"
            return f"{head}{image}\n\n{below}"
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


@dataclass(frozen=True, slots=True)
class Image:
    """A figure as PNG, on light and on dark paper."""

    light: bytes
    dark: bytes

    @staticmethod
    def _address(png: bytes) -> str:
        return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"

    @property
    def light_address(self) -> str:
        """The light one as a data address."""
        return self._address(self.light)

    @property
    def dark_address(self) -> str:
        """The dark one as a data address."""
        return self._address(self.dark)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in CSS pixels (from the PNG's header; drawn at 150 dpi, shown at 96)."""
        width, height = (int.from_bytes(self.light[start : start + 4], "big") for start in (16, 20))
        return round(width * 96 / 150), round(height * 96 / 150)


def render_html(
    title: str, sections: Iterable[tuple[str, Sequence[Block]]], images: Mapping[str, Image], version: str
) -> str:
    """The whole page; every text is escaped by the template.

    Args:
        title: Of the report.
        sections: Heading and blocks of each; the first has no heading.
        images: The figures by name.
        version: Of the package, for the foot.
    """
    page = _template().render(title=title, sections=list(sections), images=images, version=version, embedded=embedded())
    return f"{_tidy(page)}\n"


@dataclass(frozen=True, slots=True)
class Embedded:
    """What a page carries beside its content.

    Attributes:
        style: Its style.
        scripts: Its scripts: uPlot, which draws curves, and the page's own.
        policy: The content policy that allows these, images within the page, and nothing else.
    """

    style: Markup
    scripts: Sequence[Markup]
    policy: str


@functools.cache
def embedded() -> Embedded:
    """The style and the scripts of every page, from the package's files."""
    style = _tidy(_file("vendored/uPlot.min.css") + _file("page.css"))
    licence = f"/*! uPlot\n{_file('vendored/uPlot.LICENSE')}\n*/\n"  # goes wherever a copy goes
    scripts = [_tidy(licence + _file("vendored/uPlot.iife.min.js")), _tidy(_file("page.js"))]
    sources = " ".join(map(_source, scripts))
    policy = (
        f"default-src 'none'; img-src data:; style-src {_source(style)}; script-src {sources}; "
        "base-uri 'none'; form-action 'none'"
    )
    return Embedded(Markup(style), [Markup(script) for script in scripts], policy)


def _source(text: str) -> str:
    """A text as the policy names it (https://www.w3.org/TR/CSP3/#grammardef-hash-source)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


def _tidy(text: str) -> str:
    """The text without blank lines and spaces at ends of lines, which leaves a tidy text as it is."""
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip())


def _as_json(data: Any) -> Markup:
    """JSON for a block of data within a page: ASCII, and without a mark that could end the block."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return Markup(text)


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_file),
    )
    environment.filters["plain"] = plain
    environment.filters["verbatim"] = verbatim
    environment.filters["json"] = _as_json
    environment.filters["kind"] = lambda block: type(block).__name__
    return environment.get_template("page.html.j2")


def render_report(paths: Sequence[Path], target: Path, *, baseline: str | None = None) -> Path:
    """Render the results under `paths` into the folder `target`; the same results give the same bytes.

    Written are `report.md`, `index.html` (self-contained), `table.csv` (one row a case), `config.toml` and
    `device.toml` where the sweep noted its configuration and its GPU and, for every figure, `figures/<name>.png` with
    `figures/<name>.csv` beside it. Files of an earlier rendering are replaced. Results that lie below `target` get
    their consolidated file, if they need one.

    Args:
        paths: Folders that `bench sweep` wrote, or folders that hold several of them.
        target: The report's folder, made if it is not there; its name is the report's where the sweep noted none.
        baseline: The machine that the others are compared with where there are several: its name, a part of it that
            only one has, or its results folder's name; the first unless given.

    Returns:
        The path of the page to open, `index.html`.

    Raises:
        StoreError: A path holds no results or no planned run, or `target` cannot be written.
        BenchError: `baseline` names no machine of the results, or more than one.
    """
    loaded = read_results(*paths)
    loaded.warn()
    page = render_loaded(loaded, target, baseline=baseline)
    for folder in loaded.folders:
        if folder.resolve().is_relative_to(target.resolve()):  # one's own results; others' are only read
            consolidate(folder)
    return page


def render_loaded(loaded: Loaded, target: Path, *, baseline: str | None = None) -> Path:
    """Render results that were read already. Otherwise as `render_report`; nothing beside the report is written."""
    contents = _contents(loaded, target.resolve().name, baseline)
    drawn = _draw_all(contents)
    contents = dataclasses.replace(contents, pictures={item.picture.name: item.picture for item in drawn})
    built = [(section.title, list(section.build(contents))) for section in all_sections()]
    built = [(title, blocks) for title, blocks in built if blocks]
    title = f"{contents.title}: memory and speed of training steps"
    images = {item.picture.name: item.image for item in drawn}
    files = {f"figures/{name}.png": image.light for name, image in images.items()}
    files |= {f"figures/{item.picture.name}.csv": item.numbers for item in drawn}
    files |= {name: text.encode() for name, text in (contents.configs | contents.devices).items()}
    files["table.csv"] = to_csv(contents.summary).encode()
    files["report.md"] = render_markdown(title, built).encode()
    files["index.html"] = render_html(title, built, images, __version__).encode()
    write_files(target, files)
    return target / "index.html"


def all_figures() -> list[FigureKind]:
    """Every figure of `figures/`, in its order."""
    from bench.report import figures  # each imports matplotlib

    found: list[FigureKind] = all_of(figures, "FIGURE")
    return found


def all_sections() -> list[Section]:
    """Every section of `sections/`, in its order."""
    found: list[Section] = all_of(sections, "SECTION")
    return found


def _contents(loaded: Loaded, name: str, baseline: str | None) -> Contents:
    """What the report `name` is made of, before anything is drawn."""
    frame, noted = planned_runs(loaded), loaded.notes
    summary = summarise_cases(frame)
    return Contents(
        name,
        frame,
        summary,
        judge(loaded.frame, summary=summary).joined([*damaged_parts(loaded), *told_reproductions(noted)]),
        [note.values for note in noted],
        sources=list(_folders(noted)),
        hardware=_hardware(frame, summary, noted, baseline),
    )


def _hardware(
    frame: pd.DataFrame, summary: pd.DataFrame, noted: Sequence[Notes], baseline: str | None
) -> Hardware | None:
    """The machines beside each other, where there are several or a baseline was asked for."""
    names = dict(zip(summary["environment_key"], summary["machine"], strict=True))
    machines = list(dict.fromkeys(map(str, summary["machine"])))
    folders = {name: [str(names[key]) for key in keys if key in names] for name, keys in _folders(noted).items()}
    chosen = find_baseline(baseline, machines, folders)
    return compare_machines(frame, summary, chosen) if len(machines) > 1 else None


def _folders(noted: Sequence[Notes]) -> dict[str, list[str]]:
    """The environments of each results folder, by the folder's own name."""
    folders: dict[str, list[str]] = {}
    for note in noted:
        place = note.folder.parent if note.folder.name == DATA_FOLDER else note.folder
        folders.setdefault(place.resolve().name, []).append(note.environment_key)
    return folders


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A figure as it goes into the report; `numbers` as CSV."""

    picture: Picture
    image: Image
    numbers: bytes

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        coded = [base64.b64encode(part).decode("ascii") for part in (self.image.light, self.image.dark, self.numbers)]
        return {"picture": dataclasses.asdict(self.picture), "bytes": coded}

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> _Drawn:
        """What `to_json` gave."""
        light, dark, numbers = map(base64.b64decode, item["bytes"])
        return cls(Picture(**item["picture"]), Image(light, dark), numbers)


def _draw_all(contents: Contents) -> list[_Drawn]:
    """The figures that the results have something for, in their order: kept ones of the same key, else drawn."""
    bare = dataclasses.replace(contents, name="", findings=Findings(), notes=(), sources=())  # as the key has it
    folder = figures_folder()
    key = "" if folder is None else _drawing_key(bare)
    kept = None if folder is None else _read_drawn(folder / key)
    if kept is not None:
        return kept
    drawn = _draw_anew(bare)
    if folder is not None:
        _keep_drawn(folder, key, drawn)
    return drawn


def _drawing_key(contents: Contents) -> str:
    """What decides how figures look: all that they are drawn from, the package's code, and the libraries that draw.

    Args:
        contents: Nothing but `frame`, `summary` and `hardware`, which follows from these and its baseline.
    """
    versions = [f"{name} {importlib.metadata.version(name)}" for name in _DRAWING_LIBRARIES]
    baseline = contents.hardware.baseline if contents.hardware is not None else None
    made_by = [code_key((".",)), sys.version, platform.machine(), versions, baseline]
    hashed = hashlib.sha256(json.dumps(made_by).encode())
    for frame in (contents.frame, contents.summary):
        hashed.update(json.dumps(frame.index.tolist()).encode())
        for name in frame:
            column = [str(name), str(frame[name].dtype), frame[name].tolist()]
            hashed.update(json.dumps(column, default=_as_json_value).encode())
    return hashed.hexdigest()


_DRAWING_LIBRARIES = ("matplotlib", "seaborn", "numpy", "scipy", "pandas", "pyarrow", "pillow")
"""A version of one of them may draw, or write down, other bytes than the next."""


def _as_json_value(value: Any) -> Any:
    """A cell that JSON does not have."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if value is pd.NA:
        return {"unknown": True}
    raise TypeError(f"a cell of type {type(value).__name__} has no place in the key of figures")


def _read_drawn(path: Path) -> list[_Drawn] | None:
    """Kept figures; None if there are none, or not as they were written: a line with the hash of all that follows."""
    try:
        digest, _, written = path.read_bytes().partition(b"\n")
        if digest != hashlib.sha256(written).hexdigest().encode():
            return None
        os.utime(path)  # the ones used last are kept longest
        return [_Drawn.from_json(item) for item in json.loads(written)]
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _keep_drawn(folder: Path, key: str, drawn: Sequence[_Drawn]) -> None:
    """Keep figures under their key, and `_MOST_KEPT` reports' in all. A disk that cannot costs the next report time."""
    written = json.dumps([item.to_json() for item in drawn]).encode()
    with contextlib.suppress(OSError, StoreError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with whole_or_absent(folder / key, replace=True) as file:
            file.write(hashlib.sha256(written).hexdigest().encode() + b"\n" + written)
        clear_leftovers(folder)
        finished = [path for path in folder.iterdir() if len(path.name) == len(key)]
        for path in sorted(finished, key=lambda path: path.stat().st_mtime)[:-_MOST_KEPT]:
            path.unlink(missing_ok=True)


_MOST_KEPT = 30
"""Reports whose figures an account keeps; those of 5,000 runs are 6 MB."""


def _draw_anew(contents: Contents) -> list[_Drawn]:
    """The figures that the results have something for, in their order.

    They are drawn in forks, one for each processor, and what is lost there in this process: its error is raised here.
    A figure has the same bytes wherever it is drawn.
    """
    from bench.report import theme

    kinds = all_figures()
    work: Work[int] = Work(
        do=lambda place, alone: _draw(kinds[place], contents),
        shares=lambda place: False,
        kin=lambda place: place,
        describe=lambda place: f"figure {place + 1} of {len(kinds)}",
        timeout_s=_FORK_TIMEOUT_S,
    )
    workers = min(_processors(), len(kinds))
    found: dict[int, _Drawn | None] = {}
    with theme.style():
        if workers > 1:
            with contextlib.suppress(OSError):  # no more processes are allowed
                groups = [range(first, len(kinds), workers) for first in range(workers)]
                answers = work_apart(work, groups, workers)
                found = {place: made for place, made in answers if not isinstance(made, Lost)}
        drawn = [found[place] if place in found else _draw(kind, contents) for place, kind in enumerate(kinds)]
    return [item for item in drawn if item is not None]


def _draw(kind: FigureKind, contents: Contents) -> _Drawn | None:
    """One figure, drawn and written down; `None` where the results have nothing to show in it."""
    from bench.report import theme

    drawing = kind.draw(contents)
    if drawing is None:
        return None
    image = Image(theme.save(drawing.figure), theme.save(drawing.figure, dark=True))
    picture = Picture(drawing.name, drawing.title, drawing.caption, drawing.alt)
    return _Drawn(picture, image, to_csv(drawing.numbers).encode())


def _processors() -> int:
    """How many processors this process may use to fork; 1 where a fork of it is not safe."""
    if sys.platform != "linux" or multiprocessing.current_process().daemon:  # daemonic processes may have no children
        return 1
    return len(os.sched_getaffinity(0))


_FORK_TIMEOUT_S = 120.0
"""For one figure; it takes about one second."""


def write_files(target: Path, files: dict[str, bytes]) -> None:
    """Replace each file as a whole, and remove figures of an earlier rendering that are not drawn any more."""
    try:
        (target / "figures").mkdir(parents=True, exist_ok=True)
        for stale in sorted((target / "figures").iterdir()):
            if stale.suffix in (".png", ".csv") and f"figures/{stale.name}" not in files:
                stale.unlink()
        for name, content in files.items():
            temporary = target / f"{name}.part"
            temporary.write_bytes(content)
            temporary.replace(target / name)
    except OSError as error:
        raise StoreError(f"{target}: the report cannot be written ({error.strerror or error})") from error
