"""`manifest.json`: every other file of a bundle with its size and SHA-256, and one digest over all of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.bundles.archive import BundleError
from bench.bundles.names import fault_of

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 64 << 20
FORMAT = 1
"""History: 1 (0.1.0): as below."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle says that it holds.

    Attributes:
        name: Of the results.
        version: Of the harness that wrote it.
        files: `(bytes, sha256)` by path, relative to the bundle's folder.
    """

    name: str
    version: str
    files: Mapping[str, tuple[int, str]]

    @property
    def digest(self) -> str:
        """One SHA-256 for the whole bundle: publish it beside a link, and any other bundle is told from this one."""
        return hashlib.sha256(_canonical(self._body)).hexdigest()

    @property
    def text(self) -> bytes:
        """The file itself; the same manifest is the same bytes."""
        return _canonical({**self._body, "digest": self.digest})

    @property
    def _body(self) -> dict[str, Any]:
        files = [{"path": path, "bytes": size, "sha256": sha256} for path, (size, sha256) in sorted(self.files.items())]
        return {"format": FORMAT, "kind": "stepbench bundle", "name": self.name, "bench_version": self.version,
                "files": files}  # fmt: skip


def parse_manifest(text: bytes, where: str) -> Manifest:
    """Read a manifest; what is not exactly what `Manifest.text` writes is refused, so that no byte of it can change.

    Raises:
        BundleError: Not a manifest, of a newer format, or changed.
    """
    changed = f"{where}: {MANIFEST} was changed, or is none"
    try:
        found = json.loads(text)
        if found["format"] > FORMAT:
            raise BundleError(f"{where}: written by a newer version (format {int(found['format'])}); update bench")
        files = {str(file["path"]): (int(file["bytes"]), str(file["sha256"])) for file in found["files"]}
        manifest = Manifest(str(found["name"]), str(found["bench_version"]), files)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise BundleError(changed) from error
    if manifest.text != text:
        raise BundleError(f"{changed}: it is not what its own digest was taken over")
    for path in manifest.files:
        if (fault := fault_of(path)) is not None:
            raise BundleError(f"{where}: {MANIFEST} names {path[:100]!r}: {fault}")
    return manifest


def _canonical(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=True) + "\n").encode("ascii")
