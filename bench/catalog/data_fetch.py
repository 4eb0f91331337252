"""Fetching data sets through torchvision: bounded in time, whole or not at all, and one clear line when it fails.

torchvision downloads in a separate process, for three reasons: a download that stalls can be ended (its sockets have
no time limits, and a host with eight addresses behind a silent firewall costs eight of them), the process that asks
stays free of torch, and an interrupted download leaves nothing that could be taken for data: files move to their
place, one rename each, after torchvision has checked the whole set.
"""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from pathlib import Path

from bench.catalog import describe_dataset
from bench.errors import DataError
from bench.launchers import Launcher, LocalLauncher, Outcome, Send
from bench.records import Choice

SOCKET_TIMEOUT_S = 15.0
STALL_TIMEOUT_S = 120.0
"""A download that has grown by no byte for so long is ended; a slow one that grows may take its time. Importing
torchvision from a cold disk, before the first byte, takes tens of seconds."""
_LOOK_S = 0.25

CONNECT_TIMEOUT_S = 3.0
HOSTS = {  # torchvision/datasets/mnist.py and cifar.py: the first mirror of each
    "MNIST": ("ossci-datasets.s3.amazonaws.com", 443),
    "FashionMNIST": ("fashion-mnist.s3-website.eu-central-1.amazonaws.com", 80),
    "CIFAR10": ("www.cs.toronto.edu", 443),
    "CIFAR100": ("www.cs.toronto.edu", 443),
}
"""Asked for a connection first, so that a machine without a network hears so at once and not after importing torch."""

ARCHIVE_SUFFIXES = (".gz", ".tar", ".tgz")


def fetch_dataset(choice: Choice, root: Path) -> Path:
    """Fetch a data set's files unless they are on disk already.

    Args:
        choice: Which data set.
        root: The folder of the data sets; made if needed.

    Returns:
        `root`, under which the files lie now (a Debian package's files stay in their own folder).

    Raises:
        UnknownNameError: No such data set.
        DataError: It has no files to fetch, or they cannot be fetched; one line.
    """
    info = describe_dataset(choice)
    if info.on_disk(root):
        return root
    if info.fetch is None:
        raise DataError(f"{choice}: nothing to download; it uses synthetic images")
    info.fetch(root)
    return root


def fetch_torchvision(class_name: str, place: str, root: Path) -> None:
    """Download a set of torchvision's into `root`.

    Args:
        class_name: torchvision's class: `MNIST`, `CIFAR10`.
        place: Where its files belong, below `root`; for the message.
        root: The folder of the data sets.

    Raises:
        DataError: The download failed, stalled, or cannot be written; nothing of it stays.
    """
    remedy = (
        f"Copy the files to {root / place} (from a machine with network access), or set BENCH_DATA to their folder; "
        "without them, images are synthetic"
    )
    if reason := _unreachable(class_name):
        raise DataError(f"{class_name}: no network ({reason}). {remedy}")
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=root, ignore_cleanup_errors=True) as part:
            if reason := _run_download(LocalLauncher(), class_name, part):
                raise DataError(f"{class_name}: the download failed: {reason}. {remedy}")
            _move_files(Path(part), root)
    except OSError as error:
        raise DataError(f"{class_name}: cannot write to {root}: {error.strerror or error}. {remedy}") from error


def _unreachable(class_name: str) -> str | None:
    """Why the set's host does not answer, within a few seconds; `None` if it does, or a proxy stands between."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY")):
        return None
    host, port = HOSTS[class_name]
    reasons: list[str | None] = [f"{host} does not respond"]

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S).close()
            reasons[0] = None
        except OSError as error:
            reasons[0] = f"{host}: {error.strerror or error}"

    thread = threading.Thread(target=connect, daemon=True)  # looking up a name has no time limit of its own
    thread.start()
    thread.join(2 * CONNECT_TIMEOUT_S)
    return reasons[0]


def _run_download(launcher: Launcher, class_name: str, folder: str) -> str | None:
    """Download in a process of its own until that ends or stalls; why it failed in one line, or `None`."""
    answer = launcher.run(
        download_task, (class_name, folder), timeout_s=STALL_TIMEOUT_S, from_last_word=True, bare=True
    )
    if answer.outcome is Outcome.TIMED_OUT:
        return f"no response for {STALL_TIMEOUT_S:.0f} s"
    return answer.reason or answer.value["reason"]


def download_task(argument: tuple[str, str], send: Send) -> dict[str, str | None]:
    """Let torchvision download and check the set of a class into a folder; sends the bytes there as they grow.

    Returns:
        `reason`: why it failed in one line, else None.
    """
    class_name, folder = argument
    done = threading.Event()

    def watch() -> None:
        before = 0
        while not done.wait(_LOOK_S):
            if (size := _size_bytes(Path(folder))) != before:
                before = size
                send({"downloaded_bytes": size})

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        return {"reason": download(class_name, folder)}
    finally:
        done.set()
        watcher.join()


def _size_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue  # unpacked and removed in between
    return total


def _move_files(source: Path, target: Path) -> None:
    """Move what was unpacked into place; archives stay behind and go with their folder."""
    for path in sorted(source.rglob("*")):
        if path.is_file() and path.suffix not in ARCHIVE_SUFFIXES:
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)


def download(class_name: str, folder: str) -> str | None:
    """Let torchvision download and check a set, in this process; why it failed in one line, or `None`."""
    from urllib.error import URLError

    import torchvision

    socket.setdefaulttimeout(SOCKET_TIMEOUT_S)
    try:
        getattr(torchvision.datasets, class_name)(folder, train=True, download=True)
    except URLError as error:  # CIFAR-10, offline
        return f"no network ({error.reason})"
    except RuntimeError as error:  # MNIST, offline: all mirrors with their errors; or a wrong checksum
        return " ".join(str(error).split())
    except (OSError, EOFError) as error:  # a reset connection, a full disk, a truncated archive
        return f"{type(error).__name__}: {error}"
    return None
