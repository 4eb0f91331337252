"""`bench choose`: which GPU to train on, by time, energy or cost."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli.axes import read_cases, with_axes, workspaces_option
from bench.cli.drawing import check_target, numbers_path, write_drawing
from bench.cli.options import complete_devices, config_argument, device_file_option, json_option, set_option
from bench.errors import EXIT_FAILED_CASES, BenchError, ConfigError, nearest, nearest_sentence
from bench.terminal import printable
from bench.units import counted, format_bytes, format_energy, format_money, format_rate, format_span

if TYPE_CHECKING:
    from bench.devices import Device
    from bench.estimators.choosing import By, Offer, Placement, Ranking
    from bench.records import Case

TOP = 20
"""Rows that are printed unless the user says how many, so that the answer takes one screen."""
MOST_FILE_BYTES = 1 << 20
CSV_COLUMNS = ("device", "price")
_NAMED = 4
"""How many GPUs a note names."""


@click.command()
@config_argument
@set_option
@with_axes
@click.option(
    "--device",
    "devices",
    multiple=True,
    shell_complete=complete_devices,
    help="GPU, by name, pattern such as 'rtx*' or file [all of bench list devices]. Repeatable.",
)
@device_file_option
@click.option("--samples", type=click.IntRange(1), help="Samples to train on [one epoch: the data set's images].")
@click.option(
    "--by",
    type=click.Choice(["time", "energy", "cost"]),
    default="time",
    show_default=True,
    help="What the GPUs are ranked by; cost needs prices.",
)
@click.option("--price", "prices", multiple=True, metavar="GPU=NUMBER", help="Price of a GPU for an hour. Repeatable.")
@click.option(
    "--prices",
    "price_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Prices: a .toml file of GPU = NUMBER, or a .csv file with the columns device and price.",
)
@click.option(
    "--fraction",
    type=click.FloatRange(0.05, 1.0),
    default=0.8,
    show_default=True,
    help="Fraction of a GPU's memory that its batch may use.",
)
@click.option("--top", type=click.IntRange(1), help=f"Rows to print [{TOP}; all with --device or --markdown].")
@click.option(
    "--figure",
    type=click.Path(path_type=Path),
    metavar="FILE.png",
    help="Plot the ranking with its intervals (.png, .svg or .pdf); writes its numbers to FILE.csv.",
)
@click.option("--markdown", "as_markdown", is_flag=True, help="Print Markdown.")
@workspaces_option
@json_option
def choose(
    config: Path | None,
    overrides: tuple[str, ...],
    devices: tuple[str, ...],
    device_files: dict[str, Device],
    samples: int | None,
    by: By,
    prices: tuple[str, ...],
    price_file: Path | None,
    fraction: float,
    top: int | None,
    figure: Path | None,
    as_markdown: bool,
    workspaces: str,
    as_json: bool,
    **axes: tuple[Any, ...],
) -> None:
    """Rank GPUs for a training step by time, energy or cost.

    Every GPU that bench knows gets the largest batch that bench fit recommends there. GPUs whose 90 % intervals overlap
    are not told apart: their rank is a range such as 2–4. docs/choosing.md says what an estimate is good for.

    \b
    Examples:
      bench choose --model resnet50 --precision fp16
      bench choose --model vit_b_16 --precision bf16 --device h200 --device 'rtx*' --by energy
      bench choose --model resnet50 --price h200=3.40 --price rtx4090=0.44 --by cost
      bench choose --model resnet50 --prices prices.toml --by cost --figure choose.png
      bench choose --model resnet50 --samples 100000000 --json
    """
    from bench.client import placements_in_child
    from bench.estimators.choosing import rank
    from bench.launchers import LocalLauncher
    from bench.terminal import Progress

    if as_json and as_markdown:
        raise click.UsageError("--json and --markdown are two forms of the answer; give one")
    if figure is not None:
        check_target(figure, "--figure")
    gpus, known_prices = _read_gpus(devices, device_files, prices, price_file, by)
    case, samples = _one_case(config, overrides, axes, samples)
    with Progress(quiet=as_json) as progress:
        placements = placements_in_child(
            LocalLauncher(),
            case,
            gpus,
            fraction=fraction,
            workspaces=workspaces == "on",
            heard=progress.advance,
            begin=lambda count: progress.start(count, scope=str(case.model)),
        )
    ranking = rank(placements, by=by, samples=samples, fraction=fraction, prices=known_prices)
    title = case.label(("precision", "memory_format", "image_size"), batch=False)
    if as_json:
        _print_json(ranking, case)
    else:
        shown = top or (len(gpus) if devices or as_markdown else TOP)
        for line in (markdown_lines if as_markdown else text_lines)(ranking, title, shown):
            click.echo(line)
    if figure is not None and ranking.offers:
        from bench.report.choosing import draw_ranking

        write_drawing(draw_ranking(ranking, title), figure, "--figure")
        if not as_json:
            click.echo(printable(f"figure: {figure} (numbers: {numbers_path(figure)})"), err=as_markdown)
    if not ranking.offers:
        click.get_current_context().exit(EXIT_FAILED_CASES)


def _read_gpus(
    names: Sequence[str], files: Mapping[str, Device], prices: Sequence[str], price_file: Path | None, by: str
) -> tuple[list[Device], dict[str, float]]:
    """The GPUs and the prices. Raises ConfigError with every fault of the options and the file."""
    from bench.estimators.choosing import check_prices, list_gpus

    known = {gpu.name: gpu for gpu in list_gpus()}
    own = [replace(device, name=path) if device.name in known else device for path, device in files.items()]
    found, faults = [] if names else list(known.values()), list[str]()
    for name in names:
        try:
            found += _matching(name, known)
        except BenchError as error:
            faults.append(f"--device: {error}")
    given: list[tuple[str, str, object]] = []
    try:
        given += [] if price_file is None else read_price_file(price_file)
    except ConfigError as error:
        faults += error.faults
    given += [_read_price(text) for text in prices]
    known_prices: dict[str, float] = {}
    try:
        known_prices = check_prices(given, own)
    except ConfigError as error:
        faults += error.faults
    if by == "cost" and not given and not faults:
        faults.append("--by cost: needs prices; give --price GPU=NUMBER for an hour, or --prices FILE")
    if faults:
        raise ConfigError(faults)
    return list({gpu.name: gpu for gpu in (*found, *own)}.values()), known_prices


def _matching(name: str, known: Mapping[str, Device]) -> list[Device]:
    """The GPUs of a name, a pattern, or a file. Raises BenchError."""
    import fnmatch

    from bench.devices import load_device

    if "*" in name or "?" in name:
        if matches := fnmatch.filter(known, name):
            return [known[match] for match in matches]
        near = nearest_sentence(nearest(name.replace("*", "").replace("?", ""), known))
        raise BenchError(f'no device matches "{name}". {near}List them: bench list devices')
    device = load_device(name)
    if not device.is_gpu:
        raise BenchError(f"{name}: choose ranks GPUs, and this is a CPU. See bench list devices")
    return [device]


def _read_price(text: str) -> tuple[str, str, object]:
    """`(place, name, price)` of a `--price`; what is no number is left for the check."""
    name, _, price = text.partition("=")
    try:
        return "--price", name, float(price)
    except ValueError:
        return "--price", name, f'"{price}"'


def read_price_file(path: Path) -> list[tuple[str, str, object]]:
    """`(place, name, price)` of each price in a file, not checked yet. Raises ConfigError."""
    import csv
    import tomllib

    try:
        with path.open("rb") as file:
            text = file.read(MOST_FILE_BYTES + 1).decode("utf-8")
        if len(text) > MOST_FILE_BYTES:
            raise ConfigError([f"--prices {path}: larger than {MOST_FILE_BYTES >> 20} MiB"])
        if path.suffix == ".toml":
            return [(f"{path}: {name}", name, price) for name, price in tomllib.loads(text).items()]
    except OSError as error:
        raise ConfigError([f"--prices {path}: cannot be read: {error.strerror or error}"]) from error
    except (ValueError, RecursionError) as error:  # not UTF-8 or TOML
        raise ConfigError([f"--prices {path}: cannot be read: {error}"]) from error
    if path.suffix != ".csv":
        raise ConfigError([f"--prices {path}: the name must end in .toml or .csv"])
    reader = csv.DictReader(text.splitlines(), skipinitialspace=True)
    if missing := [name for name in CSV_COLUMNS if name not in (reader.fieldnames or ())]:
        raise ConfigError([f"--prices {path}: lacks the column {' and '.join(missing)} in its first line"])
    rows = ((reader.line_num, row) for row in reader)
    return [(f"{path}: line {number}", *_read_price(f"{row['device']}={row['price']}")[1:]) for number, row in rows]


def _one_case(
    config: Path | None, overrides: tuple[str, ...], axes: Mapping[str, tuple[Any, ...]], samples: int | None
) -> tuple[Case, int]:
    """The case, whose batch size does not matter, and the samples. Raises UsageError or BenchError."""
    from bench import catalog

    cases = {replace(case, batch_size=1, input="synthetic") for case in read_cases(config, overrides, dict(axes))}
    if len(cases) != 1:
        raise BenchError(
            f"choose works on one case at a time, at any batch size; {'CONFIG gives' if config else 'these axes give'} "
            f"{counted(len(cases), 'case')}" + (". Narrow it with --set 'grid.model=[\"resnet50\"]'" if config else "")
        )
    (case,) = cases
    images = samples or catalog.describe_dataset(case.dataset).train_samples
    if not images:
        raise BenchError(f"{case.dataset}: the number of its images is not known; give --samples")
    return case, images


def _print_json(ranking: Ranking, case: Case) -> None:
    from bench.cli.root import echo_json

    axes = {axis: value for axis, value in case.axes.items() if axis not in ("batch_size", "input")}
    named = ("by", "samples", "fraction", "unclear_from", "speed_bases", "power_basis")
    echo_json(
        {
            **axes,
            "answer": ranking.sentence,
            **{name: getattr(ranking, name) for name in named},
            "offers": [_offer_value(offer) for offer in ranking.offers],
            "left_out": [asdict(placement) for placement in ranking.left_out],
        }
    )


def _offer_value(offer: Offer) -> dict[str, Any]:
    """The fields of an offer and its placement as one level, those of an interval with `_low` and `_high` behind."""
    value = {name: item for name, item in asdict(offer.placement).items() if name != "reason"}
    for field in fields(offer):
        item = getattr(offer, field.name)
        if field.name in ("time_s", "energy_j", "cost"):
            ends = (None,) * 3 if item is None else item
            value |= {f"{field.name}{end}": number for end, number in zip(("", "_low", "_high"), ends, strict=True)}
        elif field.name != "placement":
            value[field.name] = item
    return value


def text_lines(ranking: Ranking, title: str, most: int) -> Iterator[str]:
    """What is printed: the answer, the table, and what both rest on."""
    yield click.style(printable(_title(ranking, title)), bold=True)
    yield click.style(printable(ranking.sentence), bold=True)
    head, rows = _table(ranking)
    widths = [max(map(len, column)) for column in zip(head, *rows[:most], strict=True)]
    for row in (head, *rows[:most]) if rows else ():
        cells = [
            f"{cell:{'<' if place == 1 else '>'}{width}}"
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield printable("  ".join(cells).rstrip())
    if len(rows) > most:
        yield f"and {len(rows) - most} more: --top {len(rows)} prints all, --device chooses"
    for note in _notes(ranking):
        yield printable(note)


def markdown_lines(ranking: Ranking, title: str, most: int) -> Iterator[str]:
    """The same as Markdown."""
    from bench.report.escape import markdown

    yield f"**{markdown(_title(ranking, title))}**\n\n{markdown(ranking.sentence)}."
    head, rows = _table(ranking)
    if rows:
        yield ""
        yield f"| {' | '.join(map(markdown, head))} |"
        yield f"|{'|'.join('---' if place == 1 else '---:' for place, _ in enumerate(head))}|"
        yield from (f"| {' | '.join(map(markdown, row))} |" for row in rows[:most])
    yield ""
    yield from (f"- {markdown(note, 2000)}" for note in _notes(ranking))


def _title(ranking: Ranking, title: str) -> str:
    return f"{title}: {ranking.samples:,} samples, estimated on {counted(len(ranking.offers), 'GPU')}"


def _table(ranking: Ranking) -> tuple[list[str], list[list[str]]]:
    """The head and a row for each GPU; the interval stands beside what is asked."""
    columns: list[tuple[str, Any]] = [
        ("rank", lambda offer: offer.rank_words),
        ("GPU", lambda offer: offer.device),
        ("batch", lambda offer: f"{offer.placement.batch_size:,}" + "?" * (offer.placement.verdict != "fits")),
        ("peak", lambda offer: format_bytes(offer.placement.device_bytes)),
        ("samples/s", lambda offer: format_rate(offer.placement.samples_per_s)),
        ("time", lambda offer: format_span(offer.time_s.point)),
        ("energy", lambda offer: format_energy(offer.energy_j and offer.energy_j.point)),
    ]
    if any(offer.cost is not None for offer in ranking.offers):
        columns.append(("cost", lambda offer: format_money(offer.cost and offer.cost.point)))
    beside = "samples/s" if ranking.by == "time" else ranking.by
    place = [name for name, _ in columns].index(beside) + 1
    columns.insert(place, ("90 % interval", lambda offer: _ends(offer, ranking.by)))
    return [name for name, _ in columns], [[cell(offer) for _, cell in columns] for offer in ranking.offers]


def _ends(offer: Offer, by: By) -> str:
    """The ends of what is asked; of samples/s for the time."""
    figure = offer.figure(by)
    if by == "time" or figure is None:
        found = offer.placement
        ends = (format_rate(end) for end in (found.samples_per_s_low, found.samples_per_s_high))
    else:
        ends = (format_energy(end) if by == "energy" else format_money(end) for end in (figure.low, figure.high))
    return "–".join(ends)


def _notes(ranking: Ranking) -> Iterator[str]:
    """What the ranking rests on, what it leaves out, and who has no place in it."""
    if ranking.offers:
        if (first := ranking.unclear_from) is not None:
            yield f"unclear from rank {first}: a rank such as 2–4 is a range, as 90 % intervals overlap"
        if any(offer.placement.verdict != "fits" for offer in ranking.offers):
            yield "? at a batch: it may not fit, if the CUDA context is as large as it may be; see bench fit"
        bases = ranking.speed_bases
        for basis, names in bases.items():
            yield f"samples/s{f' ({_names(names)})' if len(bases) > 1 else ''}: {basis}"
        yield (
            f"batch and peak: within {ranking.fraction * 100:.0f} % of the memory, as bench fit; time: of the steps "
            "alone, not of reading data or of evaluation"
        )
        yield f"energy: {ranking.power_basis}"
    for reason, names in _by_reason(ranking.left_out).items():
        yield f"not ranked: {_names(names)}: {reason}"


def _by_reason(placements: Iterable[Placement]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for placement in placements:
        reason = re.sub(rf" (on|for) {re.escape(placement.device)}:", ":", placement.reason or "no estimate")
        found.setdefault(reason, []).append(placement.device)
    return found


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


GROUP = "Estimate"
COMMANDS = (choose,)
