"""A static site from many results: no server, no scripts, and every number with its bundle to download and to verify.

The folder of a site keeps what was read from each bundle, with hashes of it in `site.json`, so that one more bundle
takes seconds. What is kept saves reading only: it counts where its bytes, the bundle's bytes and the code that made it
are those of the manifest, one bundle is read again each time to test it, and all pages are rendered anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench import __version__
from bench.bundles import bundle_files, default_target, local_results, safe_name, write_bundle
from bench.bundles.bundle import name_fault
from bench.errors import BenchError, StoreError
from bench.fingerprint import code_key
from bench.records import stable_hash
from bench.report import render_report
from bench.site.facts import CODE, BundleFacts, read_facts
from bench.site.pages import Site, bundle_slug, render_site
from bench.site.tiers import MARGIN, Tiers
from bench.store.load import results_folders
from bench.store.parts import parts

__all__ = ["MANIFEST", "Built", "build_site"]

MANIFEST = "site.json"
"""Of the site's folder: its settings, and the hashes of what is kept and of every file."""

FORMAT = 1
"""Of the manifest and of the kept facts. History: 1 (0.1.0)."""

_BUNDLES = "bundles"
_CHUNK = 1 << 20

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Built:
    """What building a site did.

    Attributes:
        page: The page to open.
        bundles: How many the site has.
        read: Names of the bundles that were read; the facts of the others were kept.
        left_out: Earlier states of results folders: of the same name, with all of their runs in a later one.
        removed: Bundles that the site had and has no more.
        pages: How many pages there are.
        written: Files whose bytes changed.
        tiers: How many throughputs there are of each tier.
    """

    page: Path
    bundles: int
    read: tuple[str, ...]
    left_out: tuple[str, ...]
    removed: tuple[str, ...]
    pages: int
    written: int
    tiers: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Settings:
    """What a site remembers of the last time. Raises BenchError where a value is not valid."""

    title: str = "Memory and speed of training steps"
    url: str = ""
    margin: float = MARGIN

    def __post_init__(self) -> None:
        if not isinstance(self.title, str) or not self.title.strip():
            raise BenchError("title: a text is needed")
        if not isinstance(self.url, str) or (self.url and not self.url.startswith(("https://", "http://"))):
            raise BenchError(f'url "{self.url}": must begin with https:// or http://')
        if not isinstance(self.margin, float) or not 0 < self.margin < 1:
            raise BenchError(f"margin {self.margin}: must be a fraction between 0 and 1; 0.05 is 5 %")


@dataclass(frozen=True, slots=True)
class _Manifest:
    """What a site's folder says of itself; nothing of it is believed without a check.

    Attributes:
        settings: Of the last time.
        kept: By the SHA-256 of an archive, the name of its facts and their SHA-256.
        packed: By the hash of a folder's parts, the SHA-256 of the archive that was made of it.
        files: The files that are the site's own.
    """

    settings: _Settings
    kept: Mapping[str, tuple[str, str]]
    packed: Mapping[str, str]
    files: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path) -> _Manifest:
        """The manifest of a folder that is new, empty or a site.

        A manifest that is damaged, or of other code, is as good as none: everything is read again.

        Raises:
            BenchError: The folder has files of somebody else and no manifest.
        """
        nothing = cls(_Settings(), {}, {}, ())
        if not folder.exists():
            return nothing
        if not folder.is_dir():
            raise BenchError(f"{folder}: is not a folder; name a new folder, or one that bench site wrote")
        if not (folder / MANIFEST).is_file():
            if any(folder.iterdir()):
                raise BenchError(
                    f"{folder}: has files, and is not a site; name a new folder, or one that bench site wrote"
                )
            return nothing
        try:
            found = json.loads((folder / MANIFEST).read_bytes())
            settings = _Settings(**found["settings"])
            files = tuple(str(name) for name in found["files"])
            if found["format"] != FORMAT or found["code"] != _code():
                return cls(settings, {}, {}, files)
            kept = {str(key): (str(name), str(sha256)) for key, (name, sha256) in found["kept"].items()}
            packed = {str(key): str(value) for key, value in found["packed"].items()}
            return cls(settings, kept, packed, files)
        except (BenchError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return nothing


def build_site(
    target: Path,
    results: Sequence[Path | str] = (),
    *,
    title: str | None = None,
    url: str | None = None,
    margin: float | None = None,
    only: bool = False,
    whole: bool = False,
    progress: Progress = lambda line: None,
) -> Built:
    """Build the site in the folder `target`, or add results to the one there; the same bundles give the same bytes.

    Args:
        target: A new or empty folder, or one that this function wrote.
        results: Bundles, and folders that `bench sweep` wrote or that hold several of these, or addresses of either;
            each folder becomes a bundle.
        title: Of the site; that of the last time unless given.
        url: Where it will be published, for absolute addresses in the feeds; as the last time unless given.
        margin: How far apart, as a fraction, two hosts may be that agree; as the last time (5 %) unless given.
        only: Whether bundles that the site has and `results` does not name are removed.
        whole: Whether every bundle is read again, whatever is kept.
        progress: Called with a line before each bundle that is read.

    Raises:
        BenchError: `target` is a folder of something else, there is nothing to show, or a setting is not valid.
        StoreError: A bundle was changed or cannot be read, or the disk refuses. The site is then as it was.
    """
    before = _Manifest.read(target)
    url = url and url.rstrip("/") + "/"
    given: dict[str, Any] = {"title": title, "url": url, "margin": margin}
    settings = replace(before.settings, **{name: value for name, value in given.items() if value is not None})
    with tempfile.TemporaryDirectory(prefix="bench-site-") as made, contextlib.ExitStack() as stack:
        here = [stack.enter_context(local_results(given)) for given in results]
        archives, packed = _archives(target, here, before, Path(made), only=only, progress=progress)
        if not archives:
            raise BenchError(f"{target}: no results to show; give bundles, or folders that bench sweep wrote")
        kept = {} if whole else _kept(target, before, archives)
        found = _read_all(archives, kept, progress)
        bundles, left_out = _without_replaced(found, set(packed.values()))
        shown = list(bundles.values())
        site = Site(settings.title, settings.url, shown, Tiers(shown, settings.margin))
        copies = {f"{_BUNDLES}/{slug}.zip": sha256 for slug, sha256 in zip(site.slugs, bundles, strict=True)}
        named = zip(bundles.items(), site.slugs, strict=True)
        files: dict[str, bytes | Path] = {
            **render_site(site),
            **{name: archives[sha256] for name, sha256 in copies.items()},
        }
        manifest = {
            "format": FORMAT,
            "kind": "stepbench site",
            "code": _code(),
            "settings": asdict(settings),
            "kept": {sha256: [slug, _sha256(facts.text)] for (sha256, facts), slug in named},
            "packed": {key: sha256 for key, sha256 in packed.items() if sha256 in bundles},
            "files": sorted({*files, MANIFEST}),
        }
        written = _write(target, files, copies, manifest, before.files)
    had = {name for name in before.files if name.endswith(".zip")}
    return Built(
        page=target / "index.html",
        bundles=len(bundles),
        read=tuple(found[sha256].name for sha256 in archives if sha256 not in kept),
        left_out=left_out,
        removed=tuple(sorted(had - set(files))),
        pages=sum(name.endswith(".html") for name in files),
        written=written,
        tiers=site.tier_counts,
    )


def _archives(
    target: Path, results: Sequence[Path], before: _Manifest, made: Path, *, only: bool, progress: Progress
) -> tuple[dict[str, Path], dict[str, str]]:
    """Every archive of the site by its SHA-256, those that it has first; and what was packed into which."""
    there = {_sha256_of(path): path for path in sorted((target / _BUNDLES).glob("*.zip")) if not path.is_symlink()}
    archives = {} if only else dict(there)
    packed = {key: sha256 for key, sha256 in before.packed.items() if sha256 in there}
    for given in results:
        if given.is_file():
            archives.setdefault(_sha256_of(given), given)
            continue
        for folder in results_folders([given]):
            key = _parts_hash(folder)
            if (sha256 := packed.get(key)) is None:
                progress(f"packing {folder}")
                archive = _pack(folder, made / key)
                sha256 = packed[key] = _sha256_of(archive)
                there.setdefault(sha256, archive)
            archives.setdefault(sha256, there[sha256])
    return archives, packed


def _pack(folder: Path, made: Path) -> Path:
    """A results folder as `bench bundle` packs it."""
    name = safe_name(default_target(folder).stem)
    render_report([folder], made / name)
    return write_bundle(made / f"{name}.zip", name, bundle_files(folder, made / name, __version__)).path


def _parts_hash(folder: Path) -> str:
    """A hash of the parts of a results folder, its name and the code that would pack it."""
    every = [*parts(folder, "plan-*.parquet"), *parts(folder / "runs"), *parts(folder / "estimates")]
    sums = {path.relative_to(folder).as_posix(): _sha256_of(path) for path in every}
    return stable_hash([default_target(folder).stem, sums, code_key(("report", "analysis", "bundles")), __version__])


def _kept(target: Path, before: _Manifest, archives: Mapping[str, Path]) -> dict[str, BundleFacts]:
    """The facts that need not be read again, by the SHA-256 of their archive.

    One of them, chosen at random, is read all the same: if it is not what its archive gives, none is believed.
    """
    found: dict[str, BundleFacts] = {}
    for sha256 in archives:
        slug, facts_sha256 = before.kept.get(sha256, ("", ""))
        if not slug or name_fault(slug) is not None:
            continue
        try:
            text = (target / _BUNDLES / f"{slug}.json").read_bytes()
            if _sha256(text) == facts_sha256:
                found[sha256] = BundleFacts.parse(text)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    if found:
        probe = random.choice(list(found))
        if read_facts(archives[probe]).text != found[probe].text:
            return {}
    return found


def _read_all(
    archives: Mapping[str, Path], kept: Mapping[str, BundleFacts], progress: Progress
) -> dict[str, BundleFacts]:
    """The facts of every archive."""
    found = {}
    todo = [sha256 for sha256 in archives if sha256 not in kept]
    for sha256, path in archives.items():
        if sha256 in kept:
            found[sha256] = kept[sha256]
            continue
        progress(f"reading {path.name} ({todo.index(sha256) + 1} of {len(todo)})")
        found[sha256] = read_facts(path)
    return found


def _without_replaced(
    found: Mapping[str, BundleFacts], packed: set[str]
) -> tuple[dict[str, BundleFacts], tuple[str, ...]]:
    """The facts, the newest first, without earlier states of folders that were packed here.

    Bundles of others stay, whatever a later one holds: anybody could write one with all their runs and more.
    """
    states = [(sha256, found[sha256].name, set(found[sha256].runs)) for sha256 in sorted(found.keys() & packed)]
    left = {
        one
        for place, (one, name, runs) in enumerate(states)
        if any(
            name == other and (runs < more or (runs == more and place < later))
            for later, (_, other, more) in enumerate(states)
        )
    }
    order = sorted(
        (sha256 for sha256 in found if sha256 not in left),
        key=lambda sha256: (-(found[sha256].ended_unix_s or 0), found[sha256].name, found[sha256].digest),
    )
    slugs = [bundle_slug(found[sha256]) for sha256 in order]
    if len(set(slugs)) < len(slugs):
        twice = next(slug for slug in slugs if slugs.count(slug) > 1)
        raise BenchError(
            f"two different bundles have the name and 16 digits of the digest in common ({twice}); give one of them"
        )
    return {sha256: found[sha256] for sha256 in order}, tuple(sorted(found[sha256].name for sha256 in left))


def _write(
    target: Path,
    files: Mapping[str, bytes | Path],
    sums: Mapping[str, str],
    manifest: Mapping[str, Any],
    before: Sequence[str],
) -> int:
    """Write what changed, each file whole, and remove what the site has no more. Returns how many files changed.

    The manifest is first, and names what will be removed as well: a build that is killed leaves nothing that the next
    one would not remove or, where hashes do not fit, make again.
    """
    stale = [name for name in before if name not in files and name != MANIFEST and name_fault(name) is None]
    try:
        for folder in ("", "models", "devices", _BUNDLES):
            (target / folder).mkdir(parents=True, exist_ok=True)
        _replace(target / MANIFEST, _json({**manifest, "files": sorted({*manifest["files"], *stale})}))
        written = sum(
            _replace(target / name, content)
            if isinstance(content, bytes)
            else _copy(target / name, content, sums[name])
            for name, content in files.items()
        )
        for name in stale:
            if not (target / name).parent.is_symlink():
                (target / name).unlink(missing_ok=True)
        _replace(target / MANIFEST, _json(manifest))
    except OSError as error:
        raise StoreError(f"{target}: the site cannot be written ({error.strerror or error})") from error
    return written


def _replace(path: Path, content: bytes) -> bool:
    """Write a file if its bytes differ; True if they did."""
    if path.is_file() and not path.is_symlink() and path.read_bytes() == content:
        return False
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_bytes(content)
    temporary.replace(path)
    return True


def _copy(path: Path, source: Path, sha256: str) -> bool:
    """Copy an archive if it is not there; True if it was not. Raises StoreError if it changed since it was read."""
    if path.is_file() and not path.is_symlink() and _sha256_of(path) == sha256:
        return False
    temporary = path.with_name(f"{path.name}.part")
    with source.open("rb") as opened, temporary.open("wb") as out:
        while chunk := opened.read(_CHUNK):
            out.write(chunk)
    if _sha256_of(temporary) != sha256:
        temporary.unlink()
        raise StoreError(f"{source}: changed while the site was built; try again")
    temporary.replace(path)
    return True


def _code() -> str:
    return code_key(CODE)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode("ascii")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sha256_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror or error})") from error
