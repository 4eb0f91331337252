"""Work in child processes, one answer an item, each kept on disk under a key of the code and versions that made it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from bench.records import stable_hash

ROOT = Path(__file__).parents[2]
Answer = dict[str, Any]


def code_hash(*patterns: str) -> str:
    """Of the files of the repository that the patterns name, by content."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in ROOT.glob(pattern)}):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Work:
    """A kind of work that a child does.

    Attributes:
        title: For the progress line, and the folder's name in the cache.
        script: Takes the path of a JSON list of items; prints one JSON line `[index, answer]` for each, in order.
        environment: Of the child, beside the current one.
        key: Whatever else decides an answer: versions, hash of the code.
        timeout_s: Limit of one item.
    """

    title: str
    script: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    key: tuple[str, ...] = ()
    timeout_s: float = 600.0


class Children:
    """Runs work in several children at once and keeps the answers."""

    def __init__(self, cache: Path, jobs: int) -> None:
        """Keep answers under `cache`; run at most `jobs` children at a time."""
        self.cache, self._jobs = cache, jobs

    def ask(self, work: Work, items: Sequence[Any]) -> list[Answer]:
        """The answer to each item; `{"failed": reason}` where the child ended without one (such are not kept)."""
        places = [self.cache / work.title / f"{stable_hash([work.key, item])}.json" for item in items]
        answers: list[Answer | None] = [_read(place) for place in places]
        todo = [index for index, answer in enumerate(answers) if answer is None]
        progress = Progress(work.title, len(todo))
        lock = threading.Lock()

        def keep(index: int, answer: Answer) -> None:
            with lock:
                answers[index] = answer
                if "failed" not in answer:
                    _write(places[index], answer)
                progress.advance()

        def serve(part: list[int]) -> None:
            while part:
                part = _run_child(work, items, part, keep)

        threads = [threading.Thread(target=serve, args=(todo[start :: self._jobs],)) for start in range(self._jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        progress.end()
        return [answer if answer is not None else {"failed": "the child gave no answer"} for answer in answers]

    def remember(self, title: str, key: Sequence[str], compute: Callable[[], Answer]) -> Answer:
        """What `compute` returned for this key, now or earlier."""
        place = self.cache / title / f"{stable_hash(list(key))}.json"
        known = _read(place)
        if known is None:
            click.echo(f"{title}: asked anew", err=True)
            known = compute()
            _write(place, known)
        return known


def _run_child(work: Work, items: Sequence[Any], part: list[int], keep: Callable[[int, Answer], None]) -> list[int]:
    """Run one child over `part`; returns what is left when it has ended, without the item that it died of."""
    with tempfile.TemporaryDirectory() as folder:
        task = Path(folder, "task.json")
        task.write_text(json.dumps([items[index] for index in part]))
        errors = Path(folder, "stderr")
        environment = {**(work.environment or os.environ), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with errors.open("w") as sink:
            child = subprocess.Popen(
                [sys.executable, str(work.script), str(task)],
                env=environment,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=sink,
                text=True,
            )
        done = 0
        with _watchdog(child, work.timeout_s) as seen:
            assert child.stdout is not None
            for line in child.stdout:
                position, answer = json.loads(line)
                keep(part[position], answer)
                done = position + 1
                seen()
            child.wait()
        if done < len(part):
            lines = errors.read_text().strip().splitlines() or ["nothing on stderr"]
            keep(part[done], {"failed": f"the child ended with {child.returncode}: {lines[-1][:200]}"})
            return part[done + 1 :]
    return []


@contextlib.contextmanager
def _watchdog(child: subprocess.Popen[str], limit_s: float) -> Iterator[Callable[[], None]]:
    """Kill the child when it says nothing for `limit_s`; yields what is to be called when it has spoken."""
    heard = time.monotonic()
    ended = threading.Event()

    def hear() -> None:
        nonlocal heard
        heard = time.monotonic()

    def watch() -> None:
        while not ended.wait(1.0):
            if time.monotonic() - heard > limit_s:
                child.kill()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield hear
    finally:
        ended.set()
        thread.join()


def _read(place: Path) -> Answer | None:
    try:
        answer: Answer = json.loads(place.read_text())
    except (OSError, ValueError):
        return None
    return answer


def _write(place: Path, answer: Answer) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
    temporary.write_text(json.dumps(answer))
    temporary.replace(place)


class Progress:
    """How far the work has come, on stderr: one line that changes on a terminal, now and then a line elsewhere."""

    def __init__(self, title: str, total: int) -> None:
        """Nothing is written where there is nothing to do."""
        self._title, self._total, self._done = title, total, 0
        self._started = self._written = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def advance(self) -> None:
        """One item more is done."""
        self._done += 1
        now = time.monotonic()
        if now - self._written < (0.2 if self._terminal else 15.0) and self._done < self._total:
            return
        self._written = now
        left = (now - self._started) / self._done * (self._total - self._done)
        text = f"{self._title}: {self._done} of {self._total}, {left / 60:.1f} min left"
        click.echo(f"{text}  \r" if self._terminal else text, err=True, nl=not self._terminal)

    def end(self) -> None:
        """Leave the line."""
        if self._total and self._terminal:
            click.echo(err=True)
