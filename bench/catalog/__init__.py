"""Models, data sets and optimizers by name. Adding one takes one new file in the folder of its kind.

Names come from the files of `bench/catalog/<kind>/`, from other packages' entry points (`bench.models`,
`bench.datasets`, `bench.optimizers`) and from the user's files that a command names (`catalog/files.py`). The parent
process does not run the code of the latter two; they are loaded in the worker.
"""

from __future__ import annotations

import fnmatch
import functools
import importlib
import importlib.metadata
import itertools
import pkgutil
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from bench.catalog import files
from bench.catalog.entries import DatasetEntry, DatasetInfo, Entry, ModelEntry, OptimizerEntry, Setting, normalise
from bench.errors import BenchError, UnknownNameError, nearest, nearest_sentence
from bench.records import Choice, SettingValue, stable_hash

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = [
    "KINDS",
    "DatasetEntry",
    "DatasetInfo",
    "Entry",
    "Kind",
    "ModelEntry",
    "OptimizerEntry",
    "Setting",
    "check_choice",
    "code_key",
    "dataset",
    "describe_dataset",
    "described",
    "entries",
    "entry",
    "is_external",
    "is_versioned",
    "lend",
    "matching",
    "model",
    "model_note",
    "names",
    "normalised",
    "note_on_listing",
    "optimizer",
    "own_side",
    "package_of",
    "parse_choice",
    "parse_choices",
]

Kind = Literal["model", "dataset", "optimizer"]
KINDS: tuple[Kind, ...] = ("model", "dataset", "optimizer")


@functools.cache
def entries(kind: Kind) -> dict[str, Entry]:
    """Every entry of a kind that ships with the package, by name, in the order of their names."""
    found: dict[str, Entry] = {}
    for module in _modules(kind):
        for name, (item, file) in _defined(kind, module).items():
            if name in found:
                raise BenchError(f"{file}: the {kind} {name} is defined twice")
            found[name] = item
    return dict(sorted(found.items()))


@functools.cache
def _modules(kind: Kind) -> list[str]:
    package = importlib.import_module(f"bench.catalog.{kind}s")
    return sorted(info.name for info in pkgutil.iter_modules(package.__path__))


@functools.cache
def _defined(kind: Kind, module: str) -> dict[str, tuple[Entry, Path]]:
    """The entries that one file defines, by name, with that file."""
    imported = importlib.import_module(f"bench.catalog.{kind}s.{module}")
    file = Path(imported.__file__ or "")
    found: dict[str, tuple[Entry, Path]] = {}
    for item in imported.ENTRIES:
        if item.name in found:
            raise BenchError(f"{file}: the {kind} {item.name} is defined twice")
        found[item.name] = (item, file)
    return found


def _shipped(kind: Kind, name: str) -> tuple[Entry, Path] | None:
    """A shipped entry with its file; files whose names begin as the entry's are imported first, others if needed."""
    for module in sorted(_modules(kind), key=lambda module: (_letters_shared(module, name), module), reverse=True):
        if name in (defined := _defined(kind, module)):
            return defined[name]
    return None


def _letters_shared(one: str, other: str) -> int:
    """How many letters two names begin with alike."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def code_key(kind: Kind, name: str) -> str:
    """16 digits for the code behind an entry: its files', or another package's version. Raises UnknownNameError."""
    return (files.code_key(name) if kind == "model" else None) or _code_key(kind, name)


@functools.cache
def _code_key(kind: Kind, name: str) -> str:
    if shipped := _shipped(kind, name):
        package = getattr(shipped[0], "package", None)
        texts = _texts(shipped[1])
        return stable_hash([texts, importlib.metadata.version(package)] if package else texts)
    if name in _external(kind):
        package = _external(kind)[name].dist
        return stable_hash([package.name, package.version] if package else name)
    raise _unknown(kind, name)


@functools.cache
def _external(kind: Kind) -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=f"bench.{kind}s")}


def _texts(file: Path) -> dict[str, str]:
    """The text of a file and of every file of this package that it imports, by name."""
    found: dict[str, str] = {}
    waiting = [file]
    while waiting:
        path = waiting.pop()
        if path.name not in found and path.exists():
            found[path.name] = path.read_text(encoding="utf-8")
            imported = re.findall(r"^from bench\.catalog\.([\w.]+) import", found[path.name], re.MULTILINE)
            waiting += [Path(__file__).parent / f"{name.replace('.', '/')}.py" for name in imported]
    return found


def is_external(kind: Kind, name: str) -> bool:
    """Whether a package, a file or a caller brings this name; such an entry is loaded in the worker only."""
    if name in _lent[kind] or (kind == "model" and files.is_name(name)):
        return True
    return _shipped(kind, name) is None and name in _external(kind)


def is_versioned(name: str) -> bool:
    """Whether the code of a model changes apart from this package, torch and torchvision: its key tells how it is."""
    return is_external("model", name) or package_of(name) is not None


def package_of(name: str) -> str | None:
    """The distribution that a shipped entry takes a model's code from, where its version is not part of every key."""
    shipped = None if is_external("model", name) else _shipped("model", name)
    return cast(ModelEntry, shipped[0]).package if shipped else None


_lent: dict[Kind, dict[str, Entry]] = {kind: {} for kind in KINDS}


def lend(kind: Kind, entry: Entry) -> None:
    """Let this process know an entry of somebody's own, whose code nobody can name: nothing of it is ever kept.

    It goes before any other of its name.
    """
    _lent[kind][entry.name] = entry


def names(kind: Kind) -> list[str]:
    """Every name of a kind, those of other packages and of files that were named included, sorted."""
    return sorted({*entries(kind), *_external(kind), *(files.names() if kind == "model" else ())})


def _unknown(kind: Kind, name: str) -> BenchError:
    """What to say of a name that is none; the file of a prefix (`timm:`) may know more than the nearest names."""
    if kind == "model" and files.is_name(name):
        return files.unknown(name)
    prefix, colon, _ = name.partition(":")
    if colon and prefix in _modules(kind):
        explain = getattr(importlib.import_module(f"bench.catalog.{kind}s.{prefix}"), "explain", None)
        if explain is not None and (said := explain(name)):
            return BenchError(said)
    known = names(kind)
    same = [other for other in known if other.endswith(f":{name}")]
    return UnknownNameError(kind, name, known, matches=same or None)


def note_on_listing(kind: Kind) -> list[str]:
    """What a listing should say of entries that are missing here: one line for each file of a kind that knows any."""
    modules = (importlib.import_module(f"bench.catalog.{kind}s.{module}") for module in _modules(kind))
    notes = (module.note_on_listing() for module in modules if hasattr(module, "note_on_listing"))
    return [note for note in notes if note]


def entry(kind: Kind, name: str, *, load_external: bool = False) -> Entry:
    """The entry of a kind by name.

    Args:
        kind: Model, data set or optimizer.
        name: As users write it.
        load_external: Import another package's entry, or a file's, where the name is one (in the worker only).

    Raises:
        UnknownNameError: Unknown name; the message has the nearest ones.
        BenchError: Another package's entry has the wrong type, or the name is of a file that was not named.
        Exception: Whatever importing another package raises.
    """
    if name in _lent[kind]:
        return _lent[kind][name]
    if shipped := _shipped(kind, name):
        return shipped[0]
    if load_external and name in _external(kind):
        return _load(kind, name)
    if load_external and kind == "model" and (own := files.load(name)):
        return own
    raise _unknown(kind, name)


_TYPES: dict[Kind, type] = {"model": ModelEntry, "dataset": DatasetEntry, "optimizer": OptimizerEntry}


def _load(kind: Kind, name: str) -> Entry:
    """Import another package's entry. Raises BenchError if what it names is none."""
    point = _external(kind)[name]
    loaded = point.load()
    if not isinstance(loaded, _TYPES[kind]):
        raise BenchError(
            f'{kind} "{name}": {point.value} is of type {type(loaded).__name__}; the entry point bench.{kind}s must '
            f"name a {_TYPES[kind].__name__} of bench.catalog"
        )
    return cast(Entry, loaded)


def model(name: str) -> ModelEntry:
    """The model of this name, other packages' included (imports them). Raises UnknownNameError."""
    return cast(ModelEntry, entry("model", name, load_external=True))


def model_note(choice: Choice) -> str | None:
    """What a reader should know about a model besides its name; None for another package's, which is not loaded."""
    shipped = None if is_external("model", choice.name) else _shipped("model", choice.name)
    return cast(ModelEntry, shipped[0]).note(choice.options) if shipped else None


def optimizer(name: str) -> OptimizerEntry:
    """The optimizer of this name, other packages' included (imports them). Raises UnknownNameError."""
    return cast(OptimizerEntry, entry("optimizer", name, load_external=True))


def dataset(name: str) -> DatasetEntry:
    """The data set of this name, other packages' included (imports them). Raises UnknownNameError."""
    return cast(DatasetEntry, entry("dataset", name, load_external=True))


def describe_dataset(choice: Choice) -> DatasetInfo:
    """What is known of a data set without reading its images. Raises UnknownNameError or DataError."""
    return dataset(choice.name).describe(**choice.options)


def own_side(choice: Choice) -> int | None:
    """Side in pixels of the images that a model was made for, if it has one of its own; None for others' models."""
    shipped = None if is_external("model", choice.name) else _shipped("model", choice.name)
    return cast(ModelEntry, shipped[0]).own_side() if shipped else None


def parse_choices(kind: Kind, text: str) -> list[Choice]:
    """Read a choice whose name may be a pattern with `*` and `?`: every entry that it matches, in the catalog's order.

    Raises:
        BenchError: Nothing matches; otherwise as `parse_choice`.
    """
    name, rest = _split_name(kind, text.strip())
    if not set(name) & set("*?"):
        return [parse_choice(kind, text)]
    return [parse_choice(kind, f"{match}{rest}") for match in matching(kind, name)]


def matching(kind: Kind, pattern: str) -> list[str]:
    """The names that a pattern matches, sorted. Raises BenchError with the nearest where it matches none."""
    if found := fnmatch.filter(names(kind), pattern):
        return found
    bare = re.sub(r"[*?]+", "", pattern)
    if not isinstance(error := _unknown(kind, pattern), UnknownNameError):
        raise error  # timm is not installed, or the pattern is of a file that was not named
    near = nearest_sentence(nearest(bare, names(kind), cutoff=0.3))
    raise BenchError(f'no {kind} matches "{pattern}". {near}List them: bench list {kind}s')


def parse_choice(kind: Kind, text: str) -> Choice:
    """Read `name` or `name:key=value,key=value` as on the command line, and check it.

    Values are TOML values (`true`, `0.1`, `[256,128]`); anything else is a string. A data set with a bare setting takes
    everything after the colon: `folder:/data/flowers`. A model's name may have a colon of its own: `timm:resnet50d`,
    `my_models.py:build`.

    Raises:
        UnknownNameError: Unknown name.
        BenchError: A setting is unknown, misspelt or has the wrong type.
    """
    name, rest = _split_name(kind, text.strip())
    rest = rest.removeprefix(":")
    known = described(kind, name)
    settings: dict[str, SettingValue] = {}
    positional = getattr(known, "positional", None)
    if positional and rest and not rest.startswith(f"{positional}="):
        settings = {positional: rest}
    else:
        for part in _split_settings(rest):
            key, equals, value = part.partition("=")
            if not equals:
                raise BenchError(f'{kind} "{text}": "{part}" is not a setting; write {name}:setting=value')
            settings[key.strip()] = _parse_value(value.strip())
    choice = Choice.of(name, settings)
    faults = check_choice(kind, choice)
    if faults:
        raise BenchError("\n".join(f'{kind} "{text}": {fault}' for fault in faults))
    return normalised(kind, choice)


def _split_name(kind: Kind, text: str) -> tuple[str, str]:
    """The name at the head of a text, and the rest from its colon on."""
    found = _MODEL_NAME.match(text) if kind == "model" else None
    end = found.end() if found else len(text.partition(":")[0])
    return text[:end], text[end:]


_MODEL_NAME = re.compile(r"(?:timm:|[^:]*\.py:)?[^:]*")
"""A prefix that names the catalog or the user's file, then the name there."""


def described(kind: Kind, name: str) -> Entry | None:
    """What this process knows of an entry without running code of others; None for another package's.

    Raises:
        UnknownNameError: Unknown name.
        BenchError: The name is of a file that was not named, or of a package that is not installed.
    """
    if kind == "model" and files.is_name(name) and name not in _lent[kind]:
        return files.described(name)
    return None if is_external(kind, name) else entry(kind, name)


def normalised(kind: Kind, choice: Choice) -> Choice:
    """The choice without settings that equal their defaults, as far as those are known."""
    known = described(kind, choice.name)
    return normalise(known, choice) if known else choice


def check_choice(kind: Kind, choice: Choice) -> list[str]:
    """Every error of a choice, as text; empty if there is none. Another package's is checked in the worker."""
    try:
        found = described(kind, choice.name)
    except BenchError as error:
        return [str(error)]
    if found is None:
        return []
    known, refuse = found.settings, getattr(found, "refuse_setting", None)
    faults = []
    for key, value in choice.settings:
        if key in known:
            if refused := known[key].check(value):
                faults.append(f"setting {key}: {refused}")
        elif refuse is None:
            near = nearest_sentence(nearest(key, known))
            allowed = f"Allowed: {', '.join(known)}." if known else "It has no settings."
            faults.append(f'{choice.name} has no setting "{key}". {near}{allowed}')
        elif refused := refuse(key, value):
            faults.append(refused)
    return faults


def _split_settings(text: str) -> Iterable[str]:
    """Split at commas outside brackets and quotes."""
    part, depth, quote, escaped = "", 0, "", False
    for character in text:
        if quote:
            quote = "" if character == quote and not escaped else quote
            escaped = character == "\\" and not escaped
        elif character in "\"'":
            quote = character
        else:
            depth += (character in "[({") - (character in "])}")
        if character == "," and depth == 0 and not quote:
            yield part
            part = ""
        else:
            part += character
    if part.strip():
        yield part


def _parse_value(text: str) -> SettingValue:
    try:
        value: Any = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # no TOML, a number of thousands of digits, a deep nest
        return text
    return tuple(value) if isinstance(value, list) else value if isinstance(value, bool | int | float | str) else text
