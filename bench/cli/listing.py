"""`bench list`: the names that commands and configurations accept."""

from __future__ import annotations

from typing import Any

import click

from bench.cli.options import json_option, models_option
from bench.errors import BenchError, nearest, nearest_sentence
from bench.terminal import printable
from bench.units import counted

MOST_NAMED = 2
"""Models of a family that a listing of all models names."""


@click.command("list")
@click.argument("what", type=click.Choice(["models", "datasets", "optimizers", "devices"]))
@click.argument("pattern", required=False)
@models_option
@json_option
def list_names(what: str, pattern: str | None, as_json: bool) -> None:
    """List models, data sets, optimizers or devices.

    PATTERN may contain * and ?. Without one, models of a library (timm) are counted by family.

    \b
    Examples:
      bench list models
      bench list models 'resnet*'
      bench list models 'timm:*vit*'
      bench list models --models my_models.py 'my_models.py:*'
      bench list optimizers
      bench list devices --json
    """
    import fnmatch

    from bench.cli.root import echo_json

    known = _devices() if what == "devices" else _entries(what)
    rows = [row for row in known if fnmatch.fnmatch(row["name"], pattern or "*")]
    if not rows and pattern:
        near = nearest_sentence(nearest(pattern.replace("*", "").replace("?", ""), [row["name"] for row in known]))
        raise BenchError(f'no {what} match "{pattern}". {near}List them: bench list {what}')
    if as_json:
        echo_json(rows)
        return
    families = _families(rows) if what == "models" and pattern is None else []
    rows = [row for row in rows if all(row["name"] not in names for _, names in families)]
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        settings = (
            f"  [{', '.join(f'{key}={value}' for key, value in row['settings'].items())}]"
            if row.get("settings")
            else ""
        )
        click.echo(printable(f"{row['name']:<{width}}  {row['summary']}") + click.style(printable(settings), dim=True))
    for family, names in families:
        click.echo(f"{family:<{width}}  {counted(len(names), 'model')}: {_some(names)}")
    if families:
        click.echo(
            f"{counted(sum(len(names) for _, names in families), 'model')} in {len(families)} families of libraries; "
            "list names with a pattern: bench list models 'timm:*vit*'"
        )
    for note in _notes(what, rows):
        click.echo(note, err=True)


def _entries(what: str) -> list[dict[str, Any]]:
    from typing import cast

    from bench import catalog

    kind = cast(catalog.Kind, what.removesuffix("s"))
    known = {name: catalog.described(kind, name) for name in catalog.names(kind)}
    return [
        {
            "name": name,
            "summary": entry.summary if entry else "from another package",
            "settings": {key: setting.default for key, setting in entry.settings.items()} if entry else {},
        }
        for name, entry in known.items()
    ]


def _families(rows: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """The names of models that a library brings, by family; a library's entries have the family as their summary."""
    from bench import catalog

    found: dict[str, list[str]] = {}
    for row in rows:
        if catalog.package_of(row["name"]):
            found.setdefault(row["summary"], []).append(row["name"])
    return sorted(found.items())


def _some(names: list[str]) -> str:
    """As many names as a line holds."""
    return ", ".join(names[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")


def _notes(what: str, rows: list[dict[str, Any]]) -> list[str]:
    """What should be said of names that are missing here, or of what is not known of them."""
    from bench import catalog

    if any(row.get("formula_alone") for row in rows):
        return [
            "formula alone: trace and speed were checked on GPUs of NVIDIA; the others are not yet run on real hardware"
        ]
    return catalog.note_on_listing("model") if what == "models" else []


def _devices() -> list[dict[str, Any]]:
    from bench.devices import list_devices, load_device
    from bench.devices.vendors import formula_alone
    from bench.units import format_bytes

    rows = []
    for name in list_devices():
        device = load_device(name)
        memory = format_bytes(device.memory_bytes) if device.memory_bytes else "all of its memory"
        if device.is_gpu and device.memory_bytes is None:
            memory = "the memory of its host"
        reason = formula_alone(device)
        summary = f"{device.gpu_name}, {memory}" + ("; formula alone" if reason else "")
        known = {"vendor": device.vendor, "kind": device.kind, "memory_bytes": device.memory_bytes}
        rows.append({"name": name, "summary": summary, **known, "formula_alone": reason})
    return rows


GROUP = "Estimate"
COMMANDS = (list_names,)
