"""What is kept of a guarded case serves as long as everything that it was read from is the same."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench.config import check_config
from bench.devices import load_device
from bench.guard import tracing
from bench.plan import build_cases, describe
from bench.records import Case, stable_hash

from .test_guard import guarded

DEVICE = load_device("h200")


def case_on(dataset: str) -> Case:
    grid = {"dataset": dataset, "model": "mlp", "optimizer": "sgd", "batch_size": 8}
    (case,) = build_cases(check_config({"name": "kept", "grid": grid}, "here"), "cuda")
    return case


class Kept:
    """A case that was traced from two modules, a setting, a package and a variable, and is kept."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.case = folder / "project", case_on("mnist")
        self.packages = folder / "site-packages"
        self.record = self.packages / "parts-1.0.dist-info" / "RECORD"
        self.record.parent.mkdir(parents=True)
        self.record.with_name("METADATA").write_text("Metadata-Version: 2.1\nName: parts\nVersion: 1.0\n")
        self.record.write_text("parts/__init__.py,sha256=aaa,1\n")
        monkeypatch.syspath_prepend(str(self.packages))
        monkeypatch.setenv("BENCH_TRACE_CACHE", str(folder / "cache"))
        monkeypatch.setenv("MODEL_WIDTH", "8")
        self.folder.mkdir()
        for name in ("model.py", "blocks.py", "widths.yaml"):
            (self.folder / name).write_text("1")
        self.traced: dict[str, Any] = {
            "guarded": guarded().fields() | {"samples_per_s": None},
            "files": {str(path): tracing._hash(path) for path in self.folder.iterdir()},
            "folders": {str(self.folder): tracing._listing(self.folder)},
            "packages": {"parts": tracing._installed("parts")},
            "variables": {"MODEL_WIDTH": stable_hash("8"), "MODEL_DEPTH": stable_hash(None)},
        }
        self.keep(self.traced)

    def keep(self, traced: dict[str, Any]) -> None:
        tracing.keep_traced(self.case, DEVICE, traced, workspaces=False)

    @property
    def serves(self) -> bool:
        return self.case in tracing.load_kept([self.case], DEVICE, workspaces=False)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    yield Kept(tmp_path, monkeypatch)


def _rebuild(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.record.write_text("parts/__init__.py,sha256=bbb,1\n")


def _upgrade(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.record.parent.rename(kept.packages / "parts-1.1.dist-info")
    (kept.packages / "parts-1.1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: parts\nVersion: 1.1\n"
    )
    importlib.invalidate_caches()


def _add_package(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    (kept.folder / "blocks").mkdir()
    (kept.folder / "blocks" / "__init__.py").write_text("")


CHANGES: dict[str, Callable[[Kept, pytest.MonkeyPatch], object]] = {
    "an imported module": lambda kept, patch: (kept.folder / "blocks.py").write_text("2"),
    "a file of settings": lambda kept, patch: (kept.folder / "widths.yaml").write_text("2"),
    "a file that is gone": lambda kept, patch: (kept.folder / "widths.yaml").unlink(),
    "a module that was added": lambda kept, patch: (kept.folder / "torch.py").write_text(""),
    "a package before a module": _add_package,
    "another build of a package": _rebuild,
    "another version of a package": _upgrade,
    "a variable": lambda kept, patch: patch.setenv("MODEL_WIDTH", "16"),
    "a variable that was not set": lambda kept, patch: patch.setenv("MODEL_DEPTH", "2"),
    "the current folder": lambda kept, patch: patch.chdir(kept.packages),
}


def test_what_is_kept_serves_while_nothing_changed(kept: Kept) -> None:
    assert kept.serves
    (kept.folder / "notes.txt").write_text("no module")
    assert kept.serves


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_kept_serves_no_more_after_a_change(change: str, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    CHANGES[change](kept, monkeypatch)
    assert not kept.serves


@pytest.mark.parametrize(("later_ns", "serves"), [(1, True), (0, False)])
def test_a_trace_during_which_a_file_was_written_is_not_kept(
    later_ns: int, serves: bool, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = kept.folder / "model.py"
    sources = tracing.Sources.__new__(tracing.Sources)  # the whole of it has a hook that stays
    sources.variables, sources._begun_ns = {}, model.stat().st_mtime_ns + later_ns
    monkeypatch.setattr(sources, "read", lambda: ([model], set()), raising=False)
    (kept.folder / "blocks.py").write_text("2")
    assert not kept.serves
    kept.keep({"guarded": kept.traced["guarded"], **tracing._read_from(sources)})
    assert kept.serves is serves


def test_a_folder_with_more_classes_is_another_case(tmp_path: Path) -> None:
    keys = []
    for name in ("cat", "dog", "eel"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "one.png")
        if name != "cat":
            describe.cache_clear()
            keys.append(tracing._key(case_on(f"folder:{tmp_path}"), DEVICE, workspaces=False))
    assert keys[0] != keys[1]


@pytest.mark.parametrize(
    ("path", "is_own"),
    [
        ("/home/me/project/model.py", True),
        ("/usr/src/app/model.py", True),
        ("/usr/local/src/app/model.py", True),
        ("/srv/python-packages/team/model.py", True),
        ("/home/me/.venv/lib/python3.12/site-packages/timm/layers.py", False),
        ("/usr/lib/python3/dist-packages/yaml/__init__.py", False),
        ("/usr/lib64/x.py", False),
        ("/usr/share/zoneinfo/UTC", False),
        ("/usr/local/lib/python3.12/json/decoder.py", False),
        ("/proc/self/status", False),
        ("<string>", False),
        (tracing.__file__, False),
        (functools.__file__, False),
    ],
)
def test_the_users_files_are_told_from_installed_ones(path: str, is_own: bool) -> None:
    assert tracing._is_own(Path(path)) is is_own


def test_modules_are_of_packages_with_names_of_their_own() -> None:
    assert tracing._distributions_of(["yaml", "pytest", "no_such_module"]) == {"PyYAML", "pytest"}


def test_all_functions_behind_a_function_are_found_once() -> None:
    def loss() -> None:
        pass

    def step(again: bool) -> None:
        loss()
        if again:
            step(False)  # its closure refers to itself

    found = tracing._behind(functools.partial(step, again=True), None)
    assert [each for each in found if each in (step, loss)] == [step, loss]
