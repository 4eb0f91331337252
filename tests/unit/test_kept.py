"""Recordings on disk: kept, found again under the same key only, and refused where they are not sound."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import catalog
from bench.catalog import parse_choice
from bench.devices import Device, load_device
from bench.estimators import kept, memory, memory_settings
from bench.estimators.memory_settings import MemorySettings, settings_in_force
from bench.estimators.recording import (
    TRACED_BATCHES,
    Asks,
    Call,
    Freed,
    Output,
    Phase,
    Recording,
    StepEnd,
    Workspaces,
    join_column,
)
from bench.estimators.tensors import contiguous
from bench.records import Case
from tests import plugins

CASE = Case(parse_choice("dataset", "mnist"), parse_choice("model", "mlp"), parse_choice("optimizer", "sgd"), 16)
HOPPER = (9, 0)


def recording(batch: int) -> Recording:
    image = contiguous("float32", (batch, 4))
    call = Call("aten::relu", (image,), (Output(1, image.nbytes, image),), Phase.FORWARD, module="head")
    return Recording([StepEnd(0), call, Freed(1), StepEnd(1)], {1: "batch"}, {1: ("head.weight", "")})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_TRACE_CACHE", str(tmp_path / "traces"))
    return tmp_path / "traces"


def test_what_is_kept_comes_back_equal(folder: Path) -> None:
    first, second = TRACED_BATCHES
    column = join_column(first, recording(first), second, recording(second))
    kept.keep("a", column)
    kept.keep("b", recording(3))
    assert kept.load("a") == column
    assert kept.load("b") == recording(3)
    assert kept.load("c") is None
    found = kept.load("a")
    assert isinstance(found, type(column)) and found.at(5) == recording(5)


@pytest.mark.parametrize("shared", [False, True])
def test_a_recording_that_asked_for_the_device_is_not_kept_for_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    from dataclasses import replace

    from bench.estimators import record

    machine = kept.machine_of(load_device("h200"), memory_settings.MemorySettings("2.15.0"))
    for asks in (Asks.PROPERTIES, Asks.NOTHING):
        monkeypatch.setattr(
            record, "record_case", lambda case, _, asks=asks: replace(recording(case.batch_size), asks=asks)
        )
        forget()
        assert kept.recording_of(CASE, machine, shared=shared).asks is asks
        assert any(folder.glob("*.trace")) is (asks is Asks.NOTHING)
    forget()


def forget() -> None:
    kept.recording_of.cache_clear()
    kept._recordings.clear()
    kept._columns.clear()
    kept._whole.clear()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("asks", "times"), [(Asks.NOTHING, 1), (Asks.ATTENTION, 2), (Asks.CAPABILITY, 3), (Asks.PROPERTIES, 4)]
)
def test_a_recording_serves_the_gpus_that_answer_what_it_asked_alike(
    folder: Path, monkeypatch: pytest.MonkeyPatch, shared: bool, asks: Asks, times: int
) -> None:
    """RTX 3090 and 3080 have one compute capability, the 4090 another that attention takes for the same, the T4 not."""
    from bench.estimators import record

    made: list[int] = []

    def record_case(case: Case, _: Any, **__: Any) -> Recording:
        made.append(case.batch_size)
        return replace(recording(case.batch_size), asks=asks)

    monkeypatch.setattr(record, "record_case", record_case)
    settings = memory_settings.MemorySettings("2.15.0")
    for keeps in (True, False):
        monkeypatch.setenv("BENCH_TRACE_CACHE", str(folder) if keeps else "off")
        made.clear()
        forget()
        for name in ("rtx3090", "rtx3080", "rtx4090", "t4"):
            kept.recording_of(CASE, kept.machine_of(load_device(name), settings), shared=shared)
        assert len(made) == times * (2 if shared else 1)
    forget()


def test_keys_tell_cases_batches_and_gpus_apart() -> None:
    keys = [
        kept.cache_key(CASE, HOPPER, (16, 48)),
        kept.cache_key(CASE, HOPPER, (1,)),
        kept.cache_key(CASE, (8, 0), (16, 48)),
        kept.cache_key(replace(CASE, precision="bf16"), HOPPER, (16, 48)),
        kept.cache_key(replace(CASE, model=parse_choice("model", "mlp:hidden=[64]")), HOPPER, (16, 48)),
        kept.cache_key(replace(CASE, dataset=parse_choice("dataset", "cifar10")), HOPPER, (16, 48)),
        kept.cache_key(replace(CASE, optimizer=parse_choice("optimizer", "adam")), HOPPER, (16, 48)),
    ]
    assert len(set(keys)) == len(keys) and None not in keys
    assert kept.cache_key(replace(CASE, batch_size=99, input="loader"), HOPPER, (16, 48)) == keys[0]


def test_code_of_an_outside_package_is_not_trusted_to_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "is_external", lambda kind, name: kind == "model")
    assert kept.cache_key(CASE, HOPPER, (16, 48)) is None
    kept.keep(None, recording(1))
    assert kept.load(None) is None


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("broken-in",)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nonsense",
        zlib.compress(b"nonsense"),
        zlib.compress(pickle.dumps({"entries": []})),
        zlib.compress(pickle.dumps(Recording()))[:-3],
        zlib.compress(pickle.dumps(Evil())),
    ],
)
def test_what_is_damaged_or_foreign_counts_as_absent(
    folder: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "key.trace").write_bytes(content)
    assert kept.load("key") is None
    assert [path.name for path in folder.iterdir()] == ["key.trace"]


def test_every_flipped_byte_is_noticed(folder: Path) -> None:
    kept.keep("key", recording(3))
    whole = (folder / "key.trace").read_bytes()
    for index in range(len(whole)):
        damaged = bytearray(whole)
        damaged[index] ^= 0x40
        (folder / "key.trace").write_bytes(bytes(damaged))
        assert kept.load("key") in (None, recording(3))


def test_a_folder_that_cannot_be_written_costs_nothing(folder: Path) -> None:
    folder.write_text("a file is in the way")
    kept.keep("key", recording(3))
    assert kept.load("key") is None


def test_the_least_lately_used_go_first_and_nobody_elses_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ["a" * 16, "b" * 16, "c" * 16, "d" * 16]
    for age, key in enumerate(keys[:3]):
        kept.keep(key, recording(3))
        os.utime(folder / f"{key}.trace", (1000 - age, 1000 - age))
    one = (folder / f"{keys[0]}.trace").stat().st_size
    (folder / "thesis.bin").write_bytes(b"x" * 10 * one)
    monkeypatch.setattr(kept, "MOST_BYTES", 2 * one)
    kept.keep(keys[3], recording(3))
    left = sorted(path.name for path in folder.iterdir())
    assert left == [f"{keys[0]}.trace", f"{keys[1]}.trace", f"{keys[3]}.trace", "thesis.bin"]


def test_a_bomb_and_half_a_record_count_as_absent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MOST_HELD_BYTES", 1000)
    kept.keep("bomb", Recording([StepEnd(0)] * 100_000))
    assert kept.load("bomb") is None
    monkeypatch.undo()
    monkeypatch.setenv("BENCH_TRACE_CACHE", str(folder))
    broken: Any = 5
    kept.keep("half", Recording(entries=broken))
    assert kept.load("half") is None


def test_off_means_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_TRACE_CACHE", "off")
    kept.keep("key", recording(3))
    assert kept.load("key") is None


H200 = load_device("h200")
SIZES = (Workspaces(512, 1024), Workspaces(0))


def test_workspaces_come_back_and_nothing_else_passes_for_them(folder: Path) -> None:
    kept.keep("sizes", SIZES)
    kept.keep("none", ())
    assert (kept.load("sizes"), kept.load("none")) == (SIZES, ())
    for number, foreign in enumerate([(Workspaces("a", 1),), ((1, 2),), [Workspaces(1, 2)]]):  # type: ignore[arg-type]
        kept.keep(str(number), foreign)  # type: ignore[arg-type]
        assert kept.load(str(number)) is None


def test_workspaces_are_those_of_a_case_a_device_and_a_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    monkeypatch.setattr(kept, "library_facts", lambda: ["/lib/libcudnn.so.9", 1])
    keys = {kept.workspaces_key(CASE, H200), kept.workspaces_key(replace(CASE, precision="tf32"), H200)}
    keys |= {kept.workspaces_key(CASE, load_device("rtx3090")), kept.workspaces_key(replace(CASE, batch_size=17), H200)}
    monkeypatch.setattr(kept, "library_facts", lambda: ["/lib/libcudnn.so.9", 2])
    keys.add(kept.workspaces_key(CASE, H200))
    assert len(keys) == 5 and None not in keys
    assert kept.workspaces_key(CASE, replace(H200, l2_bytes=None)) is None


def test_kept_workspaces_spare_cudnn_and_those_of_another_recording_do_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, target = Case(CASE.dataset, parse_choice("model", "resnet18"), CASE.optimizer, 5), memory.Target.of(H200)
    called = Call("aten::convolution", (), (), Phase.FORWARD)
    monkeypatch.setattr(kept, "recording_of", lambda *case, **named: Recording([called, called]))
    monkeypatch.setattr(kept, "library_facts", lambda: ["/lib/libcudnn.so.9", 1])
    monkeypatch.setattr(memory, "cudnn_plans", lambda device: "cuDNN was asked")
    kept.keep(kept.workspaces_key(case, H200), SIZES)
    assert memory.workspaces_of(case, target) == SIZES
    memory.workspaces_of.cache_clear()
    kept.keep(kept.workspaces_key(case, H200), SIZES[:1])
    assert memory.workspaces_of(case, target) == "cuDNN was asked"
    memory.workspaces_of.cache_clear()


FAST = """
import json, sys
from bench.catalog import parse_choice
from bench.estimators.cases import estimate_kept
from bench.records import Case
from tests import plugins
case = [parse_choice("dataset", "cifar10"), parse_choice("model", sys.argv[1]), parse_choice("optimizer", "adam")]
made = [item for size in (16, 100) for item in estimate_kept([Case(*case, size)], "h200")]
print(json.dumps([[item.trace_peak_allocated_bytes, item.formula_bytes, item.estimated_samples_per_s] for item in made]))
print(any(name in sys.modules for name in ("torch", "numpy", "pydantic", "bench.catalog.optimizers.rest")))
"""


def test_what_is_kept_is_estimated_without_torch_and_to_the_same_byte(folder: Path) -> None:
    """For every batch size of a column, and for no other model."""
    ask = [sys.executable, "-c", FAST]
    assert subprocess.run([*ask, "resnet18"], capture_output=True, text=True, check=True).stdout == "[]\nFalse\n"
    options = ["--dataset", "cifar10", "--optimizer", "adam", "--device", "h200", "--json"]
    sizes = [word for size in (16, 48, 100) for word in ("--batch-size", str(size))]
    made = plugins.bench("estimate", "--model", "resnet18", *options, *sizes, env=dict(os.environ))
    assert made.returncode == 0, made.stderr
    expected = [
        [row["trace_peak_allocated_bytes"], row["formula_bytes"], row["estimated_samples_per_s"]]
        for row in json.loads(made.stdout)
        if row["batch_size"] != 48
    ]
    found, has_torch = subprocess.run([*ask, "resnet18"], capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )[:2]
    assert json.loads(found) == expected and len(expected) == 2
    assert has_torch == "False"
    assert subprocess.run([*ask, "resnet34"], capture_output=True, text=True, check=True).stdout == "[]\nFalse\n"


@pytest.mark.parametrize(
    "found",
    [
        ({16: (1, 2)},),
        ({16: kept.Unlimited(1, 1, "2")},),  # type: ignore[arg-type]
        ({}, {16: True}),
        ({}, {}, {(1, 2): "3"}),
        ({}, {}, {}, [4]),
    ],
)
def test_only_whole_trials_come_back(folder: Path, found: tuple[Any, ...]) -> None:
    whole = kept.Trials({16: kept.Unlimited(1, 1, 2)}, {(16, 5): True}, {(5, 16): None}, {1})
    kept.keep("a", whole)
    assert kept.load("a") == whole
    kept.keep("a", kept.Trials(*found))
    assert kept.load("a") is None


def test_trials_are_those_of_a_column_a_device_its_settings_and_a_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "library_facts", lambda: ["/lib/libcudnn.so.9", 1])
    settings = settings_in_force({})

    def key(case: Case = CASE, device: Device = H200, settings: MemorySettings = settings, with_: bool = True) -> Any:
        return kept.trials_key(case, device, settings, workspaces=with_)

    assert key() == key(replace(CASE, batch_size=17))
    keys = {key(), key(replace(CASE, precision="tf32")), key(device=replace(H200, memory_bytes=1)), key(with_=False)}
    keys.add(key(settings=replace(settings, allocator="expandable_segments:True")))
    monkeypatch.setattr(kept, "library_facts", lambda: ["/lib/libcudnn.so.9", 2])
    keys.add(key())
    assert None not in keys and len(keys) == 6
