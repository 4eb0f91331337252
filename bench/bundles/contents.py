"""What goes into a bundle: the parts, the report made from them, the environments, and how to reproduce the results."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from bench.bundles.bundle import BundleError, Content
from bench.errors import StoreError
from bench.store import DATA_FOLDER, load_notes
from bench.store.load import results_folders
from bench.store.parts import NewerFormatError, UnreadableError, parts, read

_KINDS = {"": ("plan-*.parquet", "plan"), "runs": ("*.parquet", "run"), "estimates": ("*.parquet", "estimates")}

REPRODUCE = """\
# How to check these results and make them again

This folder was written by `bench bundle` (stepbench {version}).

- `bench verify .` (or the archive itself) compares every file with `manifest.json`, and lists what changed.
- `bench check .` checks whether the numbers can be published, and renders the report again to compare it.
- `bench report . --out somewhere` renders the report again from the Parquet files in `data`; with the same versions of
  bench and its libraries it is the same, to the byte.
- `bench.load(".")` in Python gives one row per run, with every step's time.
- `bench sweep config.toml --out mine` measures the same on your machine. `config.toml` is the configuration with the
  defaults of its time filled in (several are numbered). `bench compare . mine` shows what differs.{several}

`environment.json` has the machines and versions behind these results, and how every run measured. What runs printed
(`logs/`) is not included: it may contain paths and names of the machine.
"""

_SEVERAL = """ These results
  are of several machines, and a comparison is with one of them. Say which, and what yours is called in that field;
  where yours is one of these, name only that one:

{commands}"""

_TELLING = ("gpu_name", "cpu_model", "gpu_uuid_hash", "host_hash")

_NEXT = {
    "plan": "delete it and run the same bench sweep again on its machine: it plans again and keeps the intact runs",
    "run": "run the same bench sweep again on its machine: it moves the file aside and runs it again",
    "estimates": "run the same bench sweep again on its machine: it moves the file aside and estimates again",
}


def default_target(results: Path) -> Path:
    """Where the bundle of a results folder goes: beside it, `reports/mine.zip` for `reports/mine`."""
    folder = results.resolve()
    folder = folder.parent if folder.name == DATA_FOLDER else folder
    return folder.with_name(f"{folder.name}.zip")


def bundle_files(results: Path, report: Path, version: str) -> dict[str, Content]:
    """Every file of a bundle by its path in it.

    Args:
        results: One results folder, or the folder that contains one.
        report: A folder with nothing but the report of these results.
        version: Of bench.

    Raises:
        BundleError: There are several results folders; merge them first.
        StoreError: No results, or a damaged part.
    """
    folders = results_folders([results])
    if len(folders) > 1:
        raise BundleError(
            f"{results}: contains {len(folders)} results folders, but a bundle has one. Merge them first: bench merge "
            "reports/joined " + " ".join(str(folder) for folder in folders[:4])
        )
    files: dict[str, Content] = {
        path.relative_to(report).as_posix(): path for path in sorted(report.rglob("*")) if path.is_file()
    }
    for name, (pattern, kind) in _KINDS.items():
        for path in parts(folders[0] / name, pattern):
            read_whole(path, kind)  # a damaged part is named now, not by whoever opens the bundle
            files[f"{DATA_FOLDER}/{name}/{path.name}" if name else f"{DATA_FOLDER}/{path.name}"] = path
    environments = _environments(folders[0])
    files["environment.json"] = (json.dumps(environments, indent=1, sort_keys=True) + "\n").encode("ascii")
    several = _choices([item["environment"] or {} for item in environments])
    files["REPRODUCE.md"] = REPRODUCE.format(version=version, several=several).encode()
    return files


def read_whole(path: Path, kind: str) -> pa.Table:
    """One part's rows, as `bench.store.parts.read` gives them.

    Raises:
        StoreError: As `read`; for a damaged part it also says what to do next, by its kind.
    """
    try:
        return read(path, kind)
    except (NewerFormatError, UnreadableError):
        raise
    except StoreError as error:
        raise StoreError(f"{error}. If there is no copy to restore, {_NEXT[kind]}") from error


def _environments(folder: Path) -> list[dict[str, Any]]:
    """The environments and protocols of the newest plans, one object each."""
    return [
        {
            "environment_key": note.environment_key,
            **{name: note.values.get(name) for name in ("environment", "protocol")},
        }
        for note in load_notes(folder)
    ]


def _choices(environments: Sequence[Mapping[str, Any]]) -> str:
    """How to compare with one of several machines: a command for each; nothing if there is one machine.

    Machines are named by the first field that differs between all of them, or else by the first in which any differ.
    """
    values = {name: [str(item.get(name) or "unknown") for item in environments] for name in _TELLING}
    usable = {
        name: found
        for name, found in values.items()
        if len(set(found)) > 1 and all(text.isprintable() and not set(text) & set("*?[") for text in found)
    }
    if not usable:
        return ""
    field = next((name for name, found in usable.items() if len(set(found)) == len(found)), next(iter(usable)))
    commands = [
        f"      bench compare . mine --only {shlex.quote(f'{field}={value}')} --only {field}=YOURS"
        for value in dict.fromkeys(usable[field])
    ]
    return _SEVERAL.format(commands="\n".join(commands))
