"""The rules of the house, read off the code: imports point down, and the parent stays free of torch."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.each import each

PACKAGE = Path(__file__).parents[2] / "bench"

RANKS = {
    "errors": 0,
    "interpreters": 0,
    "units": 0,
    "folders": 1,
    "forks": 1,
    "records": 1,
    "terminal": 1,
    "launchers": 2,
    "catalog": 3,
    "confined": 3,
    "devices": 3,
    "stats": 3,
    "store": 3,
    "locks": 3,
    "fingerprint": 3,
    "bundles": 4,
    "config": 4,
    "recordings": 4,
    "plan": 5,
    "workload": 6,
    "estimators": 7,
    "probes": 7,
    "analysis": 7,
    "gallery": 7,
    "comparison": 8,
    "guard": 8,
    "worker": 8,
    "recorder": 8,
    "validation": 8,
    "preload": 9,
    "tasks": 9,
    "report": 9,
    "client": 10,
    "site": 10,
    "sweep": 11,
    "api": 12,
    "cli": 13,
    "pytest_plugin": 13,
    "__main__": 14,
}
"""docs/decisions/0001-ranks.md; `bench/__init__.py` is the door and stands outside."""

TORCH_FREE = [
    "bench",
    "bench.bundles",
    "bench.cli",
    "bench.config",
    "bench.plan",
    "bench.store",
    "bench.stats",
    "bench.analysis",
    "bench.comparison",
    "bench.report",
    "bench.site",
    "bench.api",
    "bench.client",
    "bench.sweep",
    "bench.launchers",
    "bench.devices",
    "bench.catalog",
]


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imported_rooms(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [f"bench.{alias.name}" for alias in node.names] if node.module == "bench" else [node.module]
        found |= {name.split(".")[1] for name in names if name.startswith("bench.")}
    return found - {"__version__"}


def test_every_room_has_a_rank() -> None:
    assert {room(path) for path in PACKAGE.rglob("*.py")} - {"__init__"} == set(RANKS)


@each("path", lambda: sorted(PACKAGE.rglob("*.py")))
def test_imports_point_to_a_lower_rank(path: Path) -> None:
    here = room(path)
    if here == "__init__":
        return
    for there in imported_rooms(path) - {here}:
        assert RANKS[there] < RANKS[here], f"{here} (rank {RANKS[here]}) imports {there} (rank {RANKS[there]})"


def test_torch_is_imported_at_the_head_of_worker_rooms_only() -> None:
    allowed = {
        "workload",
        "worker",
        "recorder",
        "estimators",
        "gallery",
        "preload",  # runs in the fork server
    }
    lazily = {PACKAGE / "catalog" / "samples.py"}  # classes of torchvision; entries import it inside functions
    for path in PACKAGE.rglob("*.py"):
        heads = [
            node
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        names = {alias.name for node in heads if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in heads if isinstance(node, ast.ImportFrom)}
        if any(name.split(".")[0] in ("torch", "torchvision") for name in names):
            assert room(path) in allowed or path in lazily, path


def test_the_parent_never_imports_torch() -> None:
    code = f"import sys, {', '.join(TORCH_FREE)}; print([n for n in ('torch', 'torchvision') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["sweep", "--help"],
        ["plan", "--help"],
        ["list", "--help"],
        ["report", "--help"],
        ["compare", "--help"],
    ],
)
def test_help_needs_none_of_the_heavy_libraries(arguments: list[str]) -> None:
    heavy = ("torch", "pandas", "matplotlib", "pyarrow", "seaborn", "numpy", "pydantic", "scipy", "rich")
    code = (
        "import sys\nfrom bench.cli import cli\n"
        f"try: cli({arguments!r}, prog_name='bench')\nexcept SystemExit: pass\n"
        f"sys.stderr.write(str([n for n in {heavy!r} if n in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert done.stderr == "[]"
    assert "Examples:" in done.stdout


def _dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_dotted(path): path for path in PACKAGE.rglob("*.py")}


def _imported_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys() or {node.module}
    return found & MODULES.keys()


GRAPH = {name: _imported_modules(path) - {name, "bench"} for name, path in MODULES.items()}
"""Imports inside functions count; the package's own door, `bench`, stands outside."""


def test_no_module_imports_itself_by_way_of_others() -> None:
    graphlib.TopologicalSorter(GRAPH).prepare()  # raises CycleError with the modules of a circle


ALONE = {
    "bench.catalog.datasets.image_folder": "a data set is one file, and ImageNet's normalisation serves others",
    "bench.catalog.models.torchvision": "a family is one file; it reads the names of torchvision's models",
    "bench.catalog.optimizers.adam": "an optimizer is one file",
    "bench.cli": "`python -m bench` starts it",
    "bench.cli.saving_text": "only printing needs it: `bench fit` without --save-memory does not",
    "bench.cli.plan": "a command is one file, and `bench sweep --dry-run` is that command",
    "bench.estimators.optimizer_parts": "it imports torch, and kept recordings are read without",
    "bench.recorder": "a process of its own, as `bench.worker` is",
    "bench.report.figures": "a folder that is scanned",
    "bench.report.sections": "a folder that is scanned",
    "bench.sweep.neighbours": "a measurement before a sweep of several devices, and none where there is one",
    "bench.sweep.ray_cluster": "an engine is one file",
}
"""Modules that one sibling alone imports, each with the reason why it is not a part of it. Prefer to merge."""


def test_a_module_that_one_sibling_alone_imports_is_part_of_it_or_has_a_reason() -> None:
    importers: dict[str, set[str]] = {name: set() for name in MODULES}
    for name, imported in GRAPH.items():
        for other in imported:
            importers[other].add(name)
    alone = set()
    for name, by in importers.items():
        room, doors = name.rpartition(".")[0], {name.rpartition(".")[0]}  # a package's door exports its modules
        alone |= {name for one in by if len(by) == 1 and one not in doors and one.rpartition(".")[0] == room}
    assert alone == set(ALONE)


def test_a_class_has_a_name_of_its_own() -> None:
    """Two recordings are one too many already: of a step (`estimators`), and of an allocator's history (`recordings`)."""
    names = [
        node.name
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    assert {name for name in names if names.count(name) > 1} == {"Recording"}
