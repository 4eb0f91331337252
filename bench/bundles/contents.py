"""What goes into a bundle: the parts, the report made from them, the environments, and how to reproduce the results.

`ro-crate-metadata.json` says the same in the words of RO-Crate 1.2 (https://w3id.org/ro/crate/1.2), which archives and
catalogues read: who made the results, what they are, when, under which licence, with which software, and every file.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from bench.bundles.bundle import MANIFEST, BundleError, Content, measure_content
from bench.errors import StoreError
from bench.store import DATA_FOLDER, Notes, load_notes
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
- `bench reproduce .` measures the same on your machine, and says for each case whether it came out the same.
- `bench sweep config.toml --out mine` only measures. `config.toml` is the configuration with the defaults of its time
  filled in (several are numbered). `bench compare . mine` shows what differs.{several}

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


@dataclass(frozen=True, slots=True)
class Credits:
    """What a bundle says of its makers.

    Attributes:
        authors: `NAME` or `NAME <URL or ORCID>` each.
        licence: An identifier of SPDX, such as `CC-BY-4.0`, or a URL; `None` if none is stated.
    """

    authors: Sequence[str] = ()
    licence: str | None = None


def bundle_files(results: Path, report: Path, version: str, credit: Credits | None = None) -> dict[str, Content]:
    """Every file of a bundle by its path in it.

    Args:
        results: One results folder, or the folder that contains one.
        report: A folder with nothing but the report of these results.
        version: Of bench.
        credit: Who made the results, and under which licence they may be used.

    Raises:
        BundleError: There are several results folders (merge them first), or `credit` is not valid.
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
    begun: list[float] = []
    for name, (pattern, kind) in _KINDS.items():
        for path in parts(folders[0] / name, pattern):
            table = read_whole(path, kind)  # a damaged part is named now, not by whoever opens the bundle
            begun += table["started_unix_s"].drop_null().to_pylist() if kind == "run" else []
            files[f"{DATA_FOLDER}/{name}/{path.name}" if name else f"{DATA_FOLDER}/{path.name}"] = path
    environments = _environments(folders[0])
    files["environment.json"] = (json.dumps(environments, indent=1, sort_keys=True) + "\n").encode("ascii")
    several = _choices([item["environment"] or {} for item in environments])
    files["REPRODUCE.md"] = REPRODUCE.format(version=version, several=several).encode()
    files[CRATE] = _crate(
        default_target(results).stem, files, load_notes(folders[0]), begun, version, credit or Credits()
    )
    return files


CRATE = "ro-crate-metadata.json"

_TYPES = {
    ".parquet": "application/vnd.apache.parquet",
    ".json": "application/json",
    ".md": "text/markdown",
    ".html": "text/html",
    ".csv": "text/csv",
    ".png": "image/png",
    ".toml": "application/toml",
}
_SOFTWARE = {
    "bench_version": "stepbench",
    "torch_version": "torch",
    "torchvision_version": "torchvision",
    "timm_version": "timm",
    "python_version": "Python",
    "cuda_version": "CUDA",
    "cudnn_version": "cuDNN",
    "driver_version": "NVIDIA driver",
}
_LATEST_UNIX_S = datetime(9999, 1, 1, tzinfo=UTC).timestamp()
_AUTHOR = re.compile(r"(?P<name>[^<>]*[^<>\s])\s*(?:<(?P<id>[^<>\s]+)>)?")
_ORCID = re.compile(r"\d{4}-\d{4}-\d{4}-\d{3}[\dX]")
_SPDX = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")
_WEB = re.compile(r"https?://[^\s<>\"]+")


def _crate(
    name: str,
    files: Mapping[str, Content],
    notes: Sequence[Notes],
    begun: Sequence[float],
    version: str,
    credit: Credits,
) -> bytes:
    """The metadata of a bundle as an RO-Crate; the same files and credits give the same bytes.

    Args:
        name: Of the results, where their sweeps noted none.
        files: All others, the manifest excluded, whose hash covers this one.
        notes: Of the newest plans.
        begun: When each run started, in Unix seconds.
        version: Of bench that writes the bundle.
        credit: Who made the results.
    """
    titles = list(dict.fromkeys(str(note.values["name"]) for note in notes if note.values.get("name")))
    told = list(dict.fromkeys(str(note.values["description"]) for note in notes if note.values.get("description")))
    machines = [note.values.get("environment") or {} for note in notes]
    names = list(dict.fromkeys(str(item.get("gpu_name") or item.get("cpu_model") or "unknown") for item in machines))
    software = [
        (title, str(number))
        for column, title in _SOFTWARE.items()
        for number in dict.fromkeys(item.get(column) for item in machines)
        if number
    ]
    writer = ("stepbench", version)
    tools = {tool: f"#{quote('-'.join(tool))}" for tool in dict.fromkeys([*software, writer])}
    people, licence = list(_people(credit.authors)), _licence(credit.licence)
    entities = [{"@id": path, **_file(path, content)} for path, content in sorted(files.items())]
    entities.append({"@id": MANIFEST, "@type": "File", "name": MANIFEST, "encodingFormat": _TYPES[".json"]})
    possible = sorted(second for second in begun if 0 < second < _LATEST_UNIX_S)
    spans = [datetime.fromtimestamp(second, UTC).isoformat(timespec="seconds") for second in possible]
    about = f"Memory and speed of training steps on {', '.join(names)}, measured and estimated by stepbench."
    root = {
        "@id": "./",
        "@type": "Dataset",
        "name": " and ".join(titles) or name,
        "description": " ".join([*(f"{text.rstrip('.')}." for text in told), about]),
        "license": _ref(licence) if licence else "No licence was stated.",
        **({"datePublished": spans[-1][:10], "temporalCoverage": f"{spans[0]}/{spans[-1]}"} if spans else {}),
        **({"author": [_ref(person) for person in people]} if people else {}),
        "hasPart": [_ref(item) for item in entities],
        "mentions": {"@id": "#measurement"},
    }
    action = {
        "@id": "#measurement",
        "@type": "CreateAction",
        "name": "bench sweep",
        "instrument": [{"@id": tools[tool]} for tool in dict.fromkeys(software)],
        "result": {"@id": "./"},
        **({"startTime": spans[0]} if spans else {}),
    }
    descriptor = {
        "@id": CRATE,
        "@type": "CreativeWork",
        "conformsTo": {"@id": "https://w3id.org/ro/crate/1.2"},
        "about": {"@id": "./"},
        "sdPublisher": {"@id": tools[writer]},
    }
    programs = [
        {"@id": tools[tool], "@type": "SoftwareApplication", "name": tool[0], "softwareVersion": tool[1]}
        for tool in sorted(tools)
    ]
    graph = [descriptor, root, action, *programs, *people, *([licence] if licence else []), *entities]
    crate = {"@context": "https://w3id.org/ro/crate/1.2/context", "@graph": graph}
    return (json.dumps(crate, indent=1, ensure_ascii=True) + "\n").encode("ascii")


def _ref(entity: Mapping[str, Any]) -> dict[str, Any]:
    return {"@id": entity["@id"]}


def _file(path: str, content: Content) -> dict[str, Any]:
    size, sha256 = measure_content(content)
    about = {"@type": "File", "name": path.rpartition("/")[2], "contentSize": str(size), "sha256": sha256}
    kind = _TYPES.get(Path(path).suffix)
    return {**about, "encodingFormat": kind} if kind else about


def _people(authors: Sequence[str]) -> Iterator[dict[str, Any]]:
    """An entity for each author. Raises BundleError."""
    for number, author in enumerate(authors, 1):
        found = _AUTHOR.fullmatch(author.strip())
        given = found["id"] if found else None
        address = f"https://orcid.org/{given}" if given and _ORCID.fullmatch(given) else given
        if found is None or (address and not _WEB.fullmatch(address)):
            raise BundleError(
                f'author "{author}": write NAME, or NAME <ADDRESS> with an ORCID or a URL, as in '
                "'Ada Lovelace <0000-0002-1825-0097>'"
            )
        yield {"@id": address or f"#author-{number}", "@type": "Person", "name": found["name"]}


def _licence(given: str | None) -> dict[str, Any] | None:
    """The entity of a licence. Raises BundleError."""
    if given is None:
        return None
    if not _SPDX.fullmatch(given) and not _WEB.fullmatch(given):
        raise BundleError(
            f'license "{given}": give an identifier of SPDX (https://spdx.org/licenses), such as CC-BY-4.0, or a URL'
        )
    address = given if _WEB.fullmatch(given) else f"https://spdx.org/licenses/{given}"
    return {"@id": address, "@type": "CreativeWork", "name": given}


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
