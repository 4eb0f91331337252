"""Results at an address: `s3://...`, `https://...` and whatever else fsspec reads, through a cache on this machine.

An address is only read, and what lies there is somebody else's: names, counts and sizes have the limits of a bundle.
A copied bundle is opened like any other, and the parts of a copied folder are read in the confined child.

A copy is used again while the store says the same of every file: its size, and its hash or date. A store that tells
neither is read again each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from bench.bundles.bundle import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_FILES,
    BundleError,
    name_fault,
    open_bundle,
    rewrite_parts,
    safe_name,
)
from bench.errors import BenchError, StoreError, first_line
from bench.folders import remote_folder
from bench.store import DATA_FOLDER
from bench.store.parts import typed_errors

CACHE_BYTES = 16 << 30
"""Of all copies together; the ones that were not used for longest go first."""

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?:::|://)")
_EXAMPLES = "https://HOST/mine.zip, s3://BUCKET/mine, file:///FOLDER/mine"
_EXTRAS = {"http": "remote", "https": "remote", "s3": "s3", "s3a": "s3"}
_SAYING = ("etag", "lastmodified", "mtime", "created", "md5", "md5hash", "contentmd5", "digest", "crc")
"""What a store may say of a file that changes with its content; in lower case, without dashes."""
_LEFT_OUT = {"logs", "consolidated"}
_CHUNK = 1 << 20


def is_address(results: str | os.PathLike[str]) -> bool:
    """Whether results are named by an address, such as `s3://bucket/mine.zip`, rather than by a path."""
    return isinstance(results, str) and _ADDRESS.match(results) is not None


def results_name(results: str | os.PathLike[str]) -> str:
    """What results are called: the last part of their path or address, without the ending of a bundle."""
    if is_address(results):
        first, *_ = [part for part in str(results).split("::") if "://" in part]
        parts = urlsplit(first)
        name = unquote(parts.path).rstrip("/").rpartition("/")[2] or parts.netloc
    else:
        path = Path(results).resolve()
        name = path.parent.name if path.name == DATA_FOLDER else path.name
    return name.removesuffix(".zip") or "results"


@contextlib.contextmanager
def open_results(paths: Iterable[str | os.PathLike[str]]) -> Iterator[list[Path]]:
    """Results as folders, for the duration of the context.

    Bundles are opened and folders passed on as they are. What lies at an address is copied, and opened as a bundle or,
    where it is a folder, with its parts written again as a bundle's are.

    Raises:
        BundleError: A file that is not a bundle, or an address that cannot be read.
        StoreError: A part that came from elsewhere is damaged.
    """
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(_opened(path)) for path in paths]


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Path]:
    with (
        local_results(path) as place,
        open_bundle(place) if place.is_file() else contextlib.nullcontext(place) as folder,
    ):
        yield folder


@contextlib.contextmanager
def local_results(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Results as a bundle or a folder on this machine, for the duration of the context.

    A path is passed on as it is. A bundle at an address is copied, and of a folder there the parts are written again.

    Raises:
        BundleError: The address cannot be read.
        StoreError: A part of a folder at an address is damaged.
    """
    if not is_address(path):
        yield Path(path)
        return
    with fetched(str(path)) as copy:
        try:
            if copy.is_dir():
                rewrite_parts(copy)
            yield copy
        except StoreError as error:
            if str(copy) not in str(error):  # it is about other results
                raise
            # the user knows the address only
            hint = ". The address of a folder ends in /" if copy.is_file() and "not a bundle" in str(error) else ""
            raise type(error)(str(error).replace(str(copy), str(path)) + hint) from error


@contextlib.contextmanager
def fetched(address: str) -> Iterator[Path]:
    """A copy of the file or the folder at an address, for the duration of the context.

    Raises:
        BundleError: The address cannot be read, or holds more than a bundle may.
        BenchError: What reads such addresses is not installed; the message names the extra.
    """
    with tempfile.TemporaryDirectory(prefix="bench-remote-") as made:
        copy = Path(made) / safe_name(results_name(address))
        system, root = _system(address)
        with _named_errors(address):
            files = _list(system, root, address)
        kept = remote_folder() / _key(address, files) if _says_enough(files) else None
        if kept is None or not _copied(kept, copy):
            with _named_errors(address):
                _download(system, root, files, copy, address)
            if kept is not None:
                _keep(copy, kept)
        yield copy


def _system(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path there. Raises BenchError."""
    protocol = re.split(r"::|://", address)[0].lower()
    if not address.rstrip("/").rpartition(":")[2]:
        raise BenchError(f"{address}: names no file and no folder. Examples: {_EXAMPLES}")
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise _missing(address, "remote", "fsspec is not installed") from error
    try:
        found: tuple[Any, str] = url_to_fs(address)
        return found
    except ImportError as error:
        protocols = re.findall(r"(?:^|::)([A-Za-z0-9+.-]+)(?=://|::|$)", address)
        extra = next((_EXTRAS[name.lower()] for name in protocols if name.lower() in _EXTRAS), None)
        raise _missing(address, extra, first_line(error)) from error
    except ValueError as error:
        if "rotocol not known" in str(error):
            raise BenchError(
                f'{address}: "{protocol}" is not a kind of address that fsspec reads. Examples: {_EXAMPLES}'
            ) from error
        raise BundleError(f"{address}: cannot be read ({first_line(error)})") from error
    except Exception as error:
        raise BundleError(f"{address}: cannot be read ({_said(error)})") from error


def _missing(address: str, extra: str | None, why: str) -> BenchError:
    how = f"pip install 'stepbench[{extra}]'" if extra else "install the package that it names"
    return BenchError(f"{address}: needs a package that is not here ({why}): {how}. Or download it, and give its path")


@contextlib.contextmanager
def _named_errors(address: str) -> Iterator[None]:
    """What a store raises, as a BundleError with the address: every file system of fsspec has its own exceptions."""
    try:
        yield
    except BenchError:
        raise
    except FileNotFoundError as error:
        why = f" ({_said(error.__cause__)})" if isinstance(error.__cause__, Exception) else ""
        raise BundleError(f"{address}: does not exist, or cannot be reached or read from here{why}") from error
    except Exception as error:
        raise BundleError(f"{address}: cannot be read ({_said(error)})") from error


def _said(error: Exception) -> str:
    return first_line(error) or type(error).__name__


def _list(system: Any, root: str, address: str) -> dict[str, Mapping[str, Any]]:
    """What the store says of each file, by its path below the root; the root itself as an empty path where it is one.

    Files that no bundle may have, logs and consolidated copies are left out. The address of a folder on a web server
    ends in a slash: there, nothing else tells it from a file.
    """
    web = "http" in (system.protocol if isinstance(system.protocol, tuple | list) else (system.protocol,))
    is_folder = address.partition("?")[0].endswith("/") if web else system.isdir(root)
    if not is_folder:
        return {"": system.info(root)}
    found: dict[str, Mapping[str, Any]] = {}
    base, size = root.rstrip("/"), 0
    for count, (_, _, files) in enumerate(system.walk(root, maxdepth=MAX_DEPTH, detail=True)):
        for info in files.values():
            name = unquote(str(info["name"])).removeprefix(unquote(base)).lstrip("/")
            if name_fault(f"results/{name}") is None and not _LEFT_OUT & set(name.split("/")[:-1]):
                found[name] = info
                size += int(info.get("size") or 0)
        if max(count, len(found)) > MAX_FILES or size > MAX_BYTES:
            raise BundleError(
                f"{address}: more than {MAX_FILES:,} files or {MAX_BYTES >> 30} GiB, the limits for results"
            )
    if not found:
        raise BundleError(f"{address}: holds no results; give a bundle, or a folder that `bench sweep` wrote")
    return found


def _download(system: Any, root: str, files: Mapping[str, Mapping[str, Any]], copy: Path, address: str) -> None:
    """Write the files to `copy`. Raises BundleError once they hold more than a bundle may."""
    left = MAX_BYTES
    for name, info in files.items():
        target = copy / name if name else copy
        target.parent.mkdir(parents=True, exist_ok=True)
        source = str(info["name"]) if name else root
        with system.open(source, "rb") as file, typed_errors(target), target.open("wb") as out:
            while chunk := file.read(_CHUNK):
                left -= len(chunk)
                if left < 0:
                    raise BundleError(f"{address}: more than {MAX_BYTES >> 30} GiB, the limit for results")
                out.write(chunk)


def _says_enough(files: Mapping[str, Mapping[str, Any]]) -> bool:
    return all(_state(info) for info in files.values())


def _state(info: Mapping[str, Any]) -> dict[str, str]:
    """What the store says of a file that changes with its content."""
    plain = {re.sub("[-_]", "", name.lower()): value for name, value in info.items()}
    return {name: str(plain[name]) for name in _SAYING if plain.get(name) is not None}


def _key(address: str, files: Mapping[str, Mapping[str, Any]]) -> str:
    told = {name: [info.get("size"), _state(info)] for name, info in files.items()}
    return hashlib.sha256(json.dumps([address, told], sort_keys=True).encode()).hexdigest()[:32]


def _copied(kept: Path, copy: Path) -> bool:
    """Whether there was a kept copy, which is now at `copy`."""
    try:
        if kept.is_dir():
            shutil.copytree(kept, copy)
        else:
            shutil.copyfile(kept, copy)
        os.utime(kept)  # the cache's order
    except OSError:  # there is none, or another command has just deleted it
        shutil.rmtree(copy, ignore_errors=True)
        return False
    return True


def _keep(copy: Path, kept: Path) -> None:
    """Put a copy into the cache, and delete the oldest of those that are too many; a full disk costs the copy only."""
    part = kept.with_name(f".{kept.name}-{uuid.uuid4().hex}")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.copytree(copy, part) if copy.is_dir() else shutil.copyfile(copy, part)
        part.rename(kept)
    except OSError:
        _delete(part)
    left = CACHE_BYTES
    for place in sorted(kept.parent.iterdir(), key=_used, reverse=True) if kept.parent.is_dir() else ():
        left -= _size(place)
        if left < 0:
            _delete(place)


def _used(place: Path) -> float:
    try:
        return place.stat().st_mtime
    except OSError:
        return 0.0


def _size(place: Path) -> int:
    paths = place.rglob("*") if place.is_dir() else (place,)
    with contextlib.suppress(OSError):
        return sum(path.stat().st_size for path in paths)
    return 0


def _delete(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    with contextlib.suppress(OSError):
        place.unlink(missing_ok=True)
