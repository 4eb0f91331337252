"""Finding what the files of a folder define, so that adding one needs no list."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import Any


def found(package: ModuleType, name: str) -> list[Any]:
    """The object called `name` of every module of `package`, by its `order`, then by the module's name.

    Raises:
        AttributeError: A module of the package does not define it.
    """
    modules = sorted(info.name for info in pkgutil.iter_modules(package.__path__))
    items = [getattr(importlib.import_module(f"{package.__name__}.{module}"), name) for module in modules]
    return sorted(items, key=lambda item: item.order)
