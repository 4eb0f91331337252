"""Reading a configuration, with every error in it reported at once."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from bench.config.sections import Data, Exclude, Grid, Include, Limits, Measure, SweepConfig
from bench.config.values import name_of, shown
from bench.errors import ConfigError, nearest, nearest_sentence, phrase

MAX_FILE_BYTES = 1 << 20


def load_config(path: Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """Read and check a configuration file.

    Args:
        path: A TOML file; its stem is the name of the configuration unless it gives one.
        overrides: Each `section.key=value`, as given to `--set`; the value is TOML, or a plain word.

    Raises:
        ConfigError: With every error in the file and the overrides.
    """
    place = str(path)
    try:
        values = _parse(_read(path))
    except OSError as error:
        raise ConfigError([f"{place}: {error.strerror}. {_configs_nearby(path)}"]) from error
    except ConfigError as error:
        raise ConfigError([f"{place}: {fault}" for fault in error.faults]) from error
    values.setdefault("name", name_of(path.stem))
    faults = [fault for override in overrides if (fault := _override(values, override))]
    if faults:
        raise ConfigError(faults)
    return check_config(values, place, [override.partition("=")[0].strip() for override in overrides])


def _read(path: Path) -> str:
    """The text of a file. Raises OSError or ConfigError."""
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError([f"larger than {MAX_FILE_BYTES >> 20} MiB, the limit for a configuration"])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError([f"byte {error.start} is not valid UTF-8 text; save the file as UTF-8"]) from error


def _parse(text: str) -> dict[str, Any]:
    """The values of TOML. Raises ConfigError."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"not valid TOML: {error}"]) from error
    except RecursionError as error:
        raise ConfigError(["not valid TOML: nested too deeply"]) from error
    except ValueError as error:  # Python refuses to read such numbers
        raise ConfigError(["not valid TOML: a number has thousands of digits"]) from error


def check_config(values: Mapping[str, Any], place: str, overridden: Sequence[str] = ()) -> SweepConfig:
    """Check values that were read from `place`, except the keys `overridden`. Raises ConfigError with every error."""
    try:
        return SweepConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError([_fault(place, overridden, details) for details in error.errors()]) from error
    except RecursionError as error:
        raise ConfigError([f"{place}: nested too deeply"]) from error


def _override(values: dict[str, Any], override: str) -> str | None:
    """Set one value in place; returns the error message, if there is one."""
    keys, equals, text = override.partition("=")
    *sections, last = keys.strip().split(".")
    if not equals or not last or not all(sections):
        return f"--set {override}: write section.key=value, like grid.batch_size=[64]"
    target: Any = values
    for section in sections:
        target = target.setdefault(section, {}) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            return f"--set {override}: {section} is not a section"
    try:
        target[last] = _parse(f"value = {text.strip()}")["value"]
    except ConfigError as error:
        if text.strip()[:1] in ("[", "{", '"', "'"):
            return f"--set {override[:200]}: {error}"
        target[last] = text.strip()
    return None


def _fault(place: str, overridden: Sequence[str], details: ErrorDetails) -> str:
    """One line about one error."""
    parts = [part for part in details["loc"] if isinstance(part, int) or _is_key(part)]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
    unknown = details["type"] == "extra_forbidden"  # of --set a.b=1 it is a that is unknown
    if any(
        where == key or where.startswith((f"{key}.", f"{key}[")) or (unknown and key.startswith(f"{where}."))
        for key in overridden
    ):
        place = "--set"
    prefix = f"{place}: {where}: " if where else f"{place}: "
    given = shown(details["input"])
    if unknown:
        key, allowed = str(details["loc"][-1]), _keys_beside([*details["loc"]])
        return f'{prefix}unknown key "{key}". {nearest_sentence(nearest(key, allowed))}Allowed: {", ".join(allowed)}'
    if details["type"] == "missing":
        return f"{prefix}required, but missing"
    message = phrase(details["type"], details.get("ctx", {}), details["msg"]).rstrip(".")
    if details["type"] in ("list_type", "model_type"):  # a section: its header shows which of the two it is
        section = f"[{details['loc'][-1]}]"
        message += f", written under {f'[{section}]' if details['type'] == 'list_type' else section}"
    names_it = message.startswith(given) or (given[0] == '"' and given in message)
    return f"{prefix}{message}" if names_it else f"{prefix}{message}; given {given}"


def _is_key(part: str | int) -> bool:
    """Whether a part of pydantic's location is a key of the file (not a name of one of its own types)."""
    return isinstance(part, str) and part.isidentifier() and part not in ("tuple", "list", "none", "nullable")


def _keys_beside(parts: Sequence[str | int]) -> list[str]:
    """The keys allowed where the last of `parts` stands."""
    section: type[BaseModel] = SweepConfig
    for part in parts[:-1]:
        section = _SECTIONS.get(str(part), section)
    return list(section.model_fields)


_SECTIONS: dict[str, type[BaseModel]] = {
    "grid": Grid,
    "include": Include,
    "exclude": Exclude,
    "measure": Measure,
    "limits": Limits,
    "data": Data,
}


def _configs_nearby(path: Path) -> str:
    names = sorted(str(item) for folder in {path.parent, Path("configs")} for item in folder.glob("*.toml"))
    names = [name for name in names if name != "pyproject.toml"]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{nearest_sentence(nearest(str(path), names))}Available: {', '.join(names[:8])}{more}" if names else ""
