"""What is fuzzed: for every loader of foreign files its first inputs, how they are changed, and how one is read."""

from __future__ import annotations

import random
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from bench.bundles import open_bundle, verify, write_bundle
from bench.catalog import KINDS, parse_choice
from bench.config import load_config
from bench.devices import load_device
from bench.errors import BenchError
from bench.launchers import Task
from bench.recordings import read_recording, write_recording
from bench.store import load_notes, load_results
from bench.validation.scoring import read_measurements
from tests.fuzz.mutators import Mutator, mutate_bundle, mutate_parquet, mutate_text
from tests.results import make_cases, make_results

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Target:
    """One loader.

    Attributes:
        name: As the command line takes it.
        seeds: Makes the first inputs in a folder that is thrown away.
        mutate: Changes an input.
        read: Reads one, `(data, folder)`: everything it writes lies below `folder`; raises BenchError where it refuses.
    """

    name: str
    seeds: Callable[[Path], Sequence[bytes]]
    mutate: Mutator
    read: Callable[[bytes, Path], None]


def _results(folder: Path) -> Path:
    cases = make_cases(("mnist",), ("mlp",), ("sgd", "adam"), (16,))
    return make_results(folder, cases, repeats=1, trace=True)


_SLOTS = (
    "plan-0001.parquet",
    "plan-0002.parquet",
    "runs/{run}",
    "runs/zz.parquet",
    "estimates/{estimate}",
    "estimates/zz.parquet",
)
_state: dict[str, Path] = {}


def _results_seeds(folder: Path) -> list[bytes]:
    """A byte that says which part of a good folder is replaced, and the part."""
    base = _results(folder / "base")
    kinds = [
        sorted(base.glob(pattern))[0].read_bytes() for pattern in ("plan-*", "runs/*.parquet", "estimates/*.parquet")
    ]
    return [bytes([slot]) + kinds[slot // 2] for slot in range(len(_SLOTS))]


def _read_results(data: bytes, folder: Path) -> None:
    base = _state.get("base")
    if base is None:
        base = _state["base"] = _results(Path(tempfile.mkdtemp(prefix="fuzz-base-")) / "data")
    copies = {path.relative_to(base).as_posix(): path for path in base.rglob("*.parquet")}
    run, estimate = (next(name for name in sorted(copies) if name.startswith(kind)) for kind in ("runs", "estimates"))
    slot = _SLOTS[(data[0] if data else 0) % len(_SLOTS)].format(
        run=run.partition("/")[2], estimate=estimate.partition("/")[2]
    )
    place = folder / "data"
    for name, path in copies.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        if name != slot:
            (place / name).hardlink_to(path)
    (place / slot).write_bytes(data[1:])
    load_all(place)


def _mutate_results(data: bytes, rng: random.Random) -> bytes:
    """The part changed, and now and then its place."""
    slot = data[0] if data and rng.random() < 0.9 else rng.randrange(len(_SLOTS))
    return bytes([slot]) + mutate_parquet(data[1:], rng)


def load_all(folder: Path) -> None:
    """Everything that reads a results folder before a report is made of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_notes(folder)
        load_results(folder)


def _bundle_seeds(folder: Path) -> list[bytes]:
    small = {"report.md": b"# a\n", "data/logs/a.bin": bytes(range(64)), "empty.csv": b""}
    real = _results(folder / "bundled")
    files = {f"data/{path.relative_to(real).as_posix()}": path for path in real.rglob("*.parquet")}
    written = [
        write_bundle(folder / f"{name}.zip", "mine", content).path for name, content in (("a", small), ("b", files))
    ]
    return [path.read_bytes() for path in written]


def _read_bundle(data: bytes, folder: Path) -> None:
    """Verify and open one; what its child would do is done here, where it is watched."""
    path = folder / "in.zip"
    path.write_bytes(data)
    found = verify(path)
    opened = False

    def run_here(task: Task, argument: Any) -> dict[str, Any]:
        nonlocal opened
        opened = True
        return task(argument, lambda message: None)

    try:
        with mock.patch("bench.bundles.bundle.run_confined", run_here), open_bundle(path) as place:
            opened = True
            if any(place.rglob("plan-*.parquet")):
                load_all(place)
    finally:
        if opened != (not found.differences):
            raise AssertionError(f"verify and open disagree: opened {opened}, {found.differences[:1]}")


def _recording_seeds(folder: Path) -> list[bytes]:
    from bench.estimators.allocator import Alloc, Free, Mark
    from tests.unit.made_recordings import make_recording

    events = [Alloc(0, 1000), Mark("0"), Alloc(1, 5 << 20), Free(1), Mark("1")]
    plain = make_recording(events)
    stacked = make_recording(events)
    object.__setattr__(stacked, "stacks", [f"line {index % 2}" for index in range(len(stacked.actions))])
    paths = [folder / "a.parquet", folder / "b.parquet"]
    for path, recording in zip(paths, (plain, stacked), strict=True):
        write_recording(recording, path)
    return [path.read_bytes() for path in paths]


def _reader(name: str, read: Callable[[Path], object]) -> Callable[[bytes, Path], None]:
    def run(data: bytes, folder: Path) -> None:
        path = folder / name
        path.write_bytes(data)
        read(path)

    return run


def _files(*patterns: str) -> Callable[[Path], list[bytes]]:
    return lambda folder: [path.read_bytes() for pattern in patterns for path in sorted(ROOT.glob(pattern))]


_CSV = [
    b"model,batch_size,peak_allocated_bytes,device\nresnet18,32,1000000000,h200\nmlp:hidden=[64],16,5000,rtx3060\n",
    b"model,batch_size,peak_mem_mib,gpu,image_size\nresnet18,32,4000,Tesla V100 16/32GB,224x224\n",
    b"family,model,optimizer,batch_size,input,zero_grad_mode,gpu,gpu_total_bytes,ground_nvml_bytes,real_oom,xmem_est_bytes\n"
    b"cnn,VGG16,Adam,100,86x86x3,0.0,rtx3060,12000000000,4000000000,False,123.5\n",
]


def _read_choices(data: bytes, folder: Path) -> None:
    text = data.decode(errors="replace")
    for kind in KINDS:
        try:
            parse_choice(kind, text)
        except BenchError:
            continue


TARGETS = {
    target.name: target
    for target in (
        Target("bundle", _bundle_seeds, mutate_bundle, _read_bundle),
        Target("results", _results_seeds, _mutate_results, _read_results),
        Target("recording", _recording_seeds, mutate_parquet, _reader("in.parquet", read_recording)),
        Target("config", _files("configs/*.toml"), mutate_text, _reader("in.toml", load_config)),
        Target(
            "device",
            _files("bench/devices/h200.toml", "bench/devices/cpu.toml", "bench/devices/a10*.toml"),
            mutate_text,
            _reader("in.toml", lambda path: load_device(str(path))),
        ),
        Target("measurements", lambda folder: _CSV, mutate_text, _reader("in.csv", read_measurements)),
        Target(
            "choice",
            lambda folder: [b"resnet18", b"mlp:hidden=[64,32]", b"adam:foreach=false", b"folder:/x", b"mnist"],
            mutate_text,
            _read_choices,
        ),
    )
}
