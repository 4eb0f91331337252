"""Models in a user's own file, as `FILE.py:NAME`, where `FILE.py` is the file's name without its folder.

A file that defines `ENTRIES`, a tuple of `ModelEntry`, has those models. Any other has its public functions and its
subclasses of `torch.nn.Module`, as far as each can be called with what the case gives by name: `images` (an
`ImageSpec`), `channels` and `classes`. Parameters with defaults are settings.

Code is loaded only where a command named the file, and in its child processes only. The command describes the file in
such a process, and hands the path with the hash of the code to all others in `BENCH_MODELS`. What that variable holds
when a command starts counts for nothing.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import inspect
import json
import multiprocessing
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.catalog.entries import ANY_VALUE, ModelEntry, Setting
from bench.errors import BenchError, UnknownNameError, describe_failure, nearest, nearest_sentence
from bench.folders import trace_cache_folder
from bench.records import ImageSpec, SettingValue, stable_hash

VARIABLE = "BENCH_MODELS"
OPTION = "--models"
GIVEN = ("images", "channels", "classes")
"""The parameters that a case fills in."""

NAMED = re.compile(r"(?P<file>[^:]*\.py):(?P<name>[^:]*)")
"""How a model of a file is written; the command line takes a path for the file."""

_KEPT, _MOST_KEPT = ".models", 200
"""Descriptions that are kept: the ending of their names, and how many."""

_known: dict[str, _File] = {}
"""The files that this process's command named, by their names."""


@dataclass(frozen=True, slots=True)
class _File:
    """A file and what a child found in it.

    Attributes:
        path: Absolute.
        code: 16 digits for the text of the file and of the modules beside it that it imports.
        entries: By their full names; they describe the models, and build none.
    """

    path: Path
    code: str
    entries: Mapping[str, ModelEntry]


def check_path(path: Path) -> None:
    """Refuse what cannot be a file of models, without looking into it. Raises BenchError."""
    if path.suffix != ".py" or ":" in path.name:
        raise BenchError(f"{path}: not a Python file; its name must end in .py")
    if not path.is_file():
        near = nearest_sentence(nearest(path.name, [item.name for item in path.parent.glob("*.py")]))
        what = "a folder" if path.is_dir() else "the file is missing"
        raise BenchError(
            f"{path}: {what}; give the path of your own models, as FILE.py or FILE.py:NAME. {near}".strip()
        )
    other = _known.get(path.name)
    if other is not None and other.path.resolve() != path.resolve():
        raise BenchError(f"{path}: {other.path} has the same name, and models are named by it; rename one")


def is_known(path: Path) -> bool:
    """Whether the command named this file already."""
    return path.name in _known and _known[path.name].path.resolve() == path.resolve()


def is_named(file_name: str) -> bool:
    """Whether the command named a file of this name."""
    return file_name in _known


def know(path: Path, described: Mapping[str, Mapping[str, Any]]) -> None:
    """Let this process and its children know a file.

    Args:
        path: Of the file, which `check_path` has passed.
        described: What `describe_file` said of it in a child.
    """
    entries = {
        name: ModelEntry(
            name,
            _not_built_here,
            about["summary"],
            settings={key: Setting(_frozen(default), ANY_VALUE) for key, default in about["settings"].items()},
        )
        for name, about in described.items()
    }
    _known[path.name] = _File(path.absolute(), _code_of(path), entries)
    os.environ[VARIABLE] = json.dumps({str(file.path): file.code for file in _known.values()})


def load_description(path: Path) -> dict[str, dict[str, Any]] | None:
    """What `keep_description` kept of a file whose code has not changed since; None if nothing is, or nothing sound.

    It only spares a process: whoever builds a model loads the file itself.
    """
    place = _description_path(path)
    try:
        held = json.loads(place.read_text(encoding="utf-8")) if place is not None else None
    except (OSError, ValueError, RecursionError):
        return None
    is_sound = isinstance(held, dict) and all(
        isinstance(about, dict) and isinstance(about.get("summary"), str) and isinstance(about.get("settings"), dict)
        for about in held.values()
    )
    return held if held and is_sound else None


def keep_description(path: Path, described: Mapping[str, Mapping[str, Any]]) -> None:
    """Keep what `describe_file` said; a folder that cannot be written costs the next command a process, no more."""
    place = _description_path(path)
    if place is None:
        return
    with contextlib.suppress(OSError, TypeError, ValueError):
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = place.with_name(f".new-{os.getpid()}-{place.name}")
        new.write_text(json.dumps(described), encoding="utf-8")
        new.replace(place)
        for old in sorted(place.parent.glob(f"*{_KEPT}"), key=lambda item: item.stat().st_mtime)[:-_MOST_KEPT]:
            old.unlink(missing_ok=True)


def _description_path(path: Path) -> Path | None:
    folder = trace_cache_folder()
    if folder is None:
        return None
    versions = [importlib.metadata.version(name) for name in ("torch", "torchvision")]
    found_from = sys.version_info[:2], sys.prefix, os.environ.get("PYTHONPATH")
    key = stable_hash([str(path.absolute()), _code_of(path), versions, found_from])
    return folder / f"{key}{_KEPT}"


def forget() -> None:
    """Forget every file, whatever the environment says: a command begins."""
    _known.clear()
    os.environ.pop(VARIABLE, None)


def is_name(name: str) -> bool:
    """Whether a name is written as a model of a file."""
    return NAMED.fullmatch(name) is not None


def described(name: str) -> ModelEntry:
    """What is known of a model of a file: in a command what a child found there, in a child the model itself.

    Raises:
        BenchError: The command did not name the file, or it has no such model.
    """
    found = next((file.entries[name] for file in _known.values() if name in file.entries), None)
    if found is None and multiprocessing.parent_process() is not None:
        found = load(name)
    if found is None:
        raise unknown(name)
    return found


def paths() -> list[Path]:
    """The files that the command named."""
    return [file.path for file in _known.values()]


def names() -> list[str]:
    """The models of all files that the command named."""
    return [name for file in _known.values() for name in file.entries]


def code_key(name: str) -> str | None:
    """16 digits for the code of a model of a file that the command named; None for other models."""
    return next((file.code for file in _known.values() if name in file.entries), None)


def unknown(name: str) -> BenchError:
    """Why a name that is written as a model of a file is none here."""
    file_name = name.partition(":")[0]
    file = _known.get(file_name)
    if file is None and (alone := file_name.rpartition("/")[2]) in _known:
        return BenchError(f'model "{name}": a file that {OPTION} names goes by its name alone; write {alone}:NAME')
    if file is None:
        path = file_name if "/" in file_name else f"PATH/{file_name}"
        return BenchError(
            f'model "{name}": code of your own runs only where the command names its file; add {OPTION} {path}'
        )
    return _not_in(name, file.entries)


def _not_in(name: str, entries: Mapping[str, ModelEntry]) -> BenchError:
    return UnknownNameError(
        "model",
        name,
        entries,
        list_command=f"list models {OPTION} {name.partition(':')[0]}",
        remedy=f"A function or class is a model if its parameters without a default are among {', '.join(GIVEN)}",
    )


def load(name: str) -> ModelEntry | None:
    """A model of a file that the command which started this process named; None where there is none such.

    Raises:
        BenchError: The file cannot be loaded, has changed since, or has no such model.
    """
    file_name = name.partition(":")[0]
    for path, code in json.loads(os.environ.get(VARIABLE, "{}")).items():
        if Path(path).name == file_name:
            try:
                entries = _loaded(Path(path))
            except BenchError as error:
                raise BenchError(f"{file_name}: {error}") from error
            if _code_of(Path(path)) != code:
                raise BenchError(f"{file_name}: changed since the command began; run the same command again")
            if name not in entries:
                raise _not_in(name, entries)
            return entries[name]
    return None


def describe_file(path: Path) -> dict[str, dict[str, Any]]:
    """Load a file, and say what it has: `summary` and `settings` (by name, their defaults) of each model.

    Raises:
        BenchError: It cannot be loaded, or has no models.
    """
    return {
        name: {
            "summary": entry.summary,
            "settings": {key: _plain(setting.default) for key, setting in entry.settings.items()},
        }
        for name, entry in _loaded(path).items()
    }


@functools.cache
def _loaded(path: Path) -> dict[str, ModelEntry]:
    """The models of a file by their full names. Raises BenchError."""
    module = _import(path)
    listed = getattr(module, "ENTRIES", None)
    if listed is None:
        found = [entry for name, item in vars(module).items() if (entry := _entry_of(module, name, item))]
    elif isinstance(listed, tuple | list) and all(isinstance(item, ModelEntry) for item in listed):
        found = list(listed)
    else:
        raise BenchError("ENTRIES must be a tuple of bench.catalog.ModelEntry")
    if not found:
        raise BenchError(
            "it has no models. Define ENTRIES, or functions that return a torch.nn.Module; their parameters "
            f"without a default are among {', '.join(GIVEN)}"
        )
    entries = {f"{path.name}:{entry.name}": entry for entry in found}
    if len(entries) < len(found) or any(not entry.name or ":" in entry.name for entry in found):
        raise BenchError("the names in ENTRIES must differ, and must not contain a colon")
    return entries


def _import(path: Path) -> ModuleType:
    """Run the file as a module of its own; modules beside it can be imported. Raises BenchError."""
    name = f"own_{path.stem}"
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None and specification.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(specification)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # last: nothing there takes the place of an installed package
    try:
        specification.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        del sys.modules[name]
        raise BenchError(f"cannot be loaded: {describe_failure(error)}") from error
    return module


def _entry_of(module: ModuleType, name: str, item: Any) -> ModelEntry | None:
    """The model that a public function or class of the module is; None if it is none."""
    if name.startswith("_") or getattr(item, "__module__", None) != module.__name__:
        return None
    from torch import nn

    if not (inspect.isfunction(item) or (inspect.isclass(item) and issubclass(item, nn.Module))):
        return None
    parameters = inspect.signature(item).parameters
    named = {
        key: value
        for key, value in parameters.items()
        if value.kind in (value.POSITIONAL_OR_KEYWORD, value.KEYWORD_ONLY)
    }
    if any(value.default is value.empty and key not in GIVEN for key, value in named.items()):
        return None
    if any(value.kind is value.POSITIONAL_ONLY and value.default is value.empty for value in parameters.values()):
        return None
    settings = {key: Setting(_frozen(value.default), ANY_VALUE) for key, value in named.items() if key not in GIVEN}
    summary = (inspect.getdoc(item) or "").partition("\n")[0] if item.__doc__ else ""
    return ModelEntry(name, functools.partial(_build, item, frozenset(named)), summary, settings=settings)


def _build(item: Callable[..., Any], parameters: frozenset[str], images: ImageSpec, **settings: SettingValue) -> Any:
    """The module that a user's function makes. Raises TypeError where it makes none."""
    from torch import nn

    given = dict(zip(GIVEN, (images, images.channels, images.classes), strict=True))
    built = item(**{key: value for key, value in given.items() if key in parameters}, **settings)
    if not isinstance(built, nn.Module):
        raise TypeError(f"{item.__name__} returned {type(built).__name__}, not a torch.nn.Module")
    return built


def _not_built_here(images: ImageSpec) -> Any:
    raise AssertionError("a user's file is loaded in child processes only")


def _code_of(path: Path) -> str:
    """16 digits for the text of a file and of the modules in its folder that it imports."""
    found: dict[str, str] = {}
    waiting = [path]
    while waiting:
        file = waiting.pop()
        name = file.relative_to(path.parent).as_posix()
        if name in found or not file.is_file():
            continue
        found[name] = file.read_text(encoding="utf-8", errors="replace")
        for imported in re.findall(r"^\s*(?:from|import)\s+(\w+)", found[name], re.MULTILINE):
            waiting += [path.parent / f"{imported}.py", *sorted((path.parent / imported).rglob("*.py"))]
    return stable_hash(found)


def _plain(value: Any) -> Any:
    """A default as JSON has it; its text where JSON has no such value."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return repr(value)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value
