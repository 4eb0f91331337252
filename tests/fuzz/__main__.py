"""Run the fuzzer: `python -m tests.fuzz --minutes 10 --seed 1 [TARGET...]`.

With atheris (libFuzzer for Python) inputs that reach new lines of `bench` are kept and changed further, over runs, in
`--corpus`. Without it, inputs are changed blindly, which finds less. One process a target and slice of time: what takes the
whole process down is a finding too. Exit code 1 where anything was found.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.fuzz.mutators import Mutator

SLICE_S = 150.0
GRACE_S = 90.0
TELL_S = 2.0
CURRENT = "current-input"


def main() -> int:
    options = _options()
    if options.one:
        return _fuzz_one(options)
    from tests.fuzz.targets import TARGETS

    _put_aside(Path(options.findings))
    names = options.targets or list(TARGETS)
    end = time.monotonic() + options.minutes * 60
    turn = failed = 0
    while time.monotonic() < end:
        for number, name in enumerate(names):
            left = end - time.monotonic()
            seconds = min(SLICE_S, options.minutes * 60 / len(names), left)
            if seconds >= 1:
                failed += _slice(options, name, seconds, options.seed + turn * len(names) + number)
        turn += 1
    found = sorted(Path(options.findings).glob("*.txt"))
    for path in found:
        print(f"finding {path.stem}: {path.read_text(errors='replace').splitlines()[0]}")
    print(f"{len(found)} findings in {options.findings}" if found or failed else "no finding")
    return 1 if found or failed else 0


def _put_aside(findings: Path) -> None:
    """Move what earlier runs found to `earlier`: what is not mended is found again."""
    earlier = findings / "earlier"
    for path in sorted(findings.glob("*-*.*")):
        earlier.mkdir(exist_ok=True)
        path.replace(earlier / path.name)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", default="build/fuzz/corpus")
    parser.add_argument("--findings", default="build/fuzz/findings")
    parser.add_argument("--one", type=float, metavar="SECONDS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:  # nothing of bench may be imported before it is instrumented
        return options
    from tests.fuzz.targets import TARGETS

    if unknown := sorted(set(options.targets) - set(TARGETS)):
        parser.error(f"unknown target {', '.join(unknown)}; there are: {', '.join(TARGETS)}")
    return options


def _slice(options: argparse.Namespace, name: str, seconds: float, seed: int) -> int:
    """One target for some seconds in a process of its own; 1 where the process itself died."""
    command = [
        sys.executable,
        "-m",
        "tests.fuzz",
        name,
        "--one",
        str(seconds),
        "--seed",
        str(seed),
        "--corpus",
        options.corpus,
        "--findings",
        options.findings,
    ]
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1", "ARROW_IO_THREADS": "1"}
    scratch = tempfile.mkdtemp(prefix="bench-fuzz-")
    environment["TMPDIR"] = scratch
    try:
        done = subprocess.run(
            command, env=environment, timeout=seconds * 2 + GRACE_S, capture_output=True, text=True, errors="replace"
        )
        code, output = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        code, output = -1, f"hangs: {error}"
    finally:
        current = Path(scratch) / CURRENT
        last = current.read_bytes() if current.exists() else b""
        shutil.rmtree(scratch, ignore_errors=True)
    lines = output.splitlines()
    told = [line for line in lines if line.startswith("fuzzed")][-1:]
    print("\n".join([line for line in lines if line.startswith("NEW")] + told), flush=True)
    if code == 0:
        return 0
    place = Path(options.findings) / f"{name}-process-{seed}.txt"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(f"the process died ({code})\n\n{output[-20_000:]}", encoding="utf-8", errors="replace")
    place.with_suffix(".bin").write_bytes(last)
    print(f"NEW {name}: the process died ({code}), see {place}", flush=True)
    return 1


def _fuzz_one(options: argparse.Namespace) -> int:
    try:
        import atheris
    except ImportError:
        return _fuzz_blindly(options)
    with atheris.instrument_imports(include=["bench"]):
        import bench.bundles
        import bench.catalog
        import bench.config
        import bench.devices
        import bench.recordings
        import bench.store
        import bench.validation.scoring  # noqa: F401
    check, mutate, corpus = _prepare(options)

    def change(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        made = atheris.Mutate(data, max_size) if rng.random() < 0.1 else mutate(data, rng)
        return made[:max_size]

    arguments = [
        "fuzz",
        f"-seed={options.seed}",
        f"-max_total_time={int(options.one)}",
        "-max_len=1048576",
        "-timeout=100000",
        "-rss_limit_mb=6000",
        "-verbosity=0",
        "-print_final_stats=0",
        f"-artifact_prefix={options.findings}/{options.targets[0]}-died-",
        str(corpus),
    ]
    Path(options.findings).mkdir(parents=True, exist_ok=True)
    atheris.Setup(arguments, check, custom_mutator=change)
    atheris.Fuzz()
    return 0


def _fuzz_blindly(options: argparse.Namespace) -> int:
    check, mutate, corpus = _prepare(options)
    rng, start = random.Random(options.seed), time.monotonic()
    inputs = [path.read_bytes() for path in sorted(corpus.iterdir())]
    while time.monotonic() - start < options.one:
        data = rng.choice(inputs)
        for _ in range(rng.choice([1, 1, 2, 3])):
            data = mutate(data, rng)
        check(data)
    return 0


def _prepare(options: argparse.Namespace) -> tuple[Callable[[bytes], None], Mutator, Path]:
    """How one input is checked, how one is changed, and the folder of inputs, seeds included."""
    from tests.fuzz import guard
    from tests.fuzz.running import Findings, fault_of
    from tests.fuzz.targets import TARGETS

    target = TARGETS[options.targets[0]]
    corpus = Path(options.corpus) / target.name
    corpus.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="bench-fuzz-"))  # below the parent's, which takes it away
    findings = Findings(Path(options.findings), target.name)
    current = Path(tempfile.gettempdir()) / CURRENT
    count, start, told = 0, time.monotonic(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(target.seeds(Path(folder))):
            (corpus / f"seed-{number}").write_bytes(seed)
            target.read(seed, Path(tempfile.mkdtemp(dir=scratch)))  # imports what is imported late, unwatched
    guard.install(limit_memory=True)

    def check(data: bytes) -> None:
        nonlocal count, told
        count += 1
        current.write_bytes(data)  # what is left where this process dies
        if (fault := fault_of(target, data, scratch)) and findings.add(*fault, data):
            print(f"NEW {target.name}: {fault[0]}", flush=True)
        if (now := time.monotonic() - start) - told > TELL_S:  # libFuzzer leaves without a last word
            told = now
            print(
                f"fuzzed {target.name}: {count} inputs in {now:.0f} s, {len(findings.seen)} different faults",
                flush=True,
            )

    return check, target.mutate, corpus


if __name__ == "__main__":
    raise SystemExit(main())
