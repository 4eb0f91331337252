"""Loads heavy libraries when tests run rather than when they are collected, which imports every test file.

While the finder is installed, `import torch` binds a module that loads itself at the first use of an attribute. Hence
two habits in test files: `import torch` and `torch.nn`, not `from torch import nn`; and what builds on torch
(`bench.workload`, `bench.worker`, ...) is imported inside the tests that use it. `tests/contract/test_collection.py`
names the file that loads something heavy all the same.

Not `importlib.util.LazyLoader`: pytest asks whatever a test file binds for marks and wrappers, and that alone would load it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest

HEAVY = ("torch", "torchvision", "pandas", "pyarrow.compute", "scipy.special", "scipy.stats", "matplotlib", "seaborn")
LOADED = pytest.StashKey[list[str]]()
"""Of a session's configuration: the heavy libraries that collecting has loaded."""


class LateModule(ModuleType):
    """A module that is loaded at the first use of an attribute that an empty module lacks."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("__", "_pytest", "_mock", "pytest")):
            raise AttributeError(name)
        load(self)
        return getattr(self, name)


def load(module: ModuleType) -> None:
    """Load a module that waits for it; any other is left as it is."""
    if isinstance(module, LateModule):
        if FINDER in sys.meta_path:
            LOADERS.append(f"{module.__name__} by {_test_file() or 'no test file'}")
        module.__class__ = ModuleType  # before it runs: modules that import each other meet half-loaded ones
        assert module.__spec__ is not None and isinstance(module.__spec__.loader, LateLoader)
        module.__spec__.loader.load(module)


class LateLoader(Loader):
    """Makes an empty module that the real loader fills when it is first used."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return LateModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Leave it for later."""

    def load(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)


class LateFinder(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        parent = name.rpartition(".")[0]
        if parent in sys.modules:
            load(sys.modules[parent])  # a part of torch that is loaded before torch crashes the interpreter
        spec = PathFinder.find_spec(name, path) if name in HEAVY else None
        if spec is not None and spec.loader is not None:
            spec.loader = LateLoader(spec.loader)
        return spec


FINDER = LateFinder()
LOADERS: list[str] = []
"""What loaded a library while the finder was installed."""


def install() -> None:
    """From now on, heavy libraries wait for their first use."""
    sys.meta_path.insert(0, FINDER)


def load_all() -> None:
    """Load what waits, and make no further module wait."""
    sys.meta_path.remove(FINDER)
    for name in HEAVY:
        if name in sys.modules:
            load(sys.modules[name])


def loaded() -> list[str]:
    """The heavy libraries that are loaded, each with the file that loads it where that is known."""
    known = {text.partition(" ")[0]: text for text in LOADERS}
    there = [name for name in HEAVY if name in sys.modules and not isinstance(sys.modules[name], LateModule)]
    return [known.get(name, name) for name in there]


def _test_file() -> str | None:
    """The innermost file of tests that is being imported."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if frame.f_code.co_name == "<module>" and path.is_relative_to(Path(__file__).parent):
            return path.name
        frame = frame.f_back
    return None
