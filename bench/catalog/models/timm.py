"""Every model of timm, as `timm:NAME`, untrained and adapted to the data set's channels and classes.

Names, image sizes and the names of settings are read from the source of timm with `ast`, so that neither timm nor torch
is imported before a model is built. Nothing is ever downloaded: models are built with `pretrained=False`, and what
would load weights is not a setting. A model's family is the file that registers it.
"""

from __future__ import annotations

import ast
import copy
import functools
import importlib.util
import re
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.catalog.entries import ANY_VALUE, ModelEntry, Setting
from bench.errors import BenchError, Unsupported, message_of, nearest, nearest_sentence, place_of
from bench.records import ImageSpec, SettingValue
from bench.units import counted

if TYPE_CHECKING:
    import torch

PREFIX = "timm:"
INSTALL = "pip install 'stepbench[timm]'"

REFUSED_SETTINGS: Mapping[str, str] = {
    **dict.fromkeys(("in_chans", "num_classes"), "the data set decides it"),
    **dict.fromkeys(("img_size", "input_size"), "set image_size, an axis of the case"),
    **dict.fromkeys(("features_only", "out_indices"), "the model would return features, not classes"),
    **dict.fromkeys(
        ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"),
        "models are untrained, and no weights are loaded",
    ),
}
"""Arguments of `timm.create_model` that are not settings, and why."""

_REGISTERED = re.compile(r"^@register_model\b.*\ndef (\w+)\(", re.MULTILINE)
_ABOUT_SHAPES = re.compile(r"size|shape|dimension|broadcast|divisible|multiple|height|width", re.IGNORECASE)
_ABOUT_THE_DEVICE = re.compile(r"memory|CUDA|cuDNN|CUBLAS")


@dataclass(frozen=True, slots=True)
class Input:
    """The images that a model's default configuration names.

    Attributes:
        side: Their height in pixels.
        fixed: Whether the model must be built for a size.
        channels: Of each pixel.
    """

    side: int
    fixed: bool
    channels: int = 3

    def is_of(self, images: ImageSpec) -> bool:
        """Whether these images have that size and those channels."""
        return images.shape == (self.channels, self.side, self.side)


@functools.cache
def _folder() -> Path | None:
    """The folder of timm's models; None where timm is not installed."""
    found = importlib.util.find_spec("timm")
    return Path(found.submodule_search_locations[0]) / "models" if found and found.submodule_search_locations else None


def _source(family: str) -> str:
    folder = _folder()
    path = folder / f"{family}.py" if folder else None
    return path.read_text(encoding="utf-8") if path and path.is_file() else ""


@functools.cache
def inputs_of(family: str) -> dict[str, Input]:
    """The images of each model of a family, by timm's names; without those whose configuration cannot be read.

    The statements of the file that make `default_cfgs` are run, and no others: what they take from other files of timm
    (means, standard deviations) is None to them, and annotations are postponed, as in this file.
    """
    names: dict[str, Any] = _Permissive(copy=copy, generate_default_cfgs=lambda configurations: configurations)
    try:
        exec(compile(ast.Module(_making("default_cfgs", ast.parse(_source(family))), []), family, "exec"), names)
        configurations = {key: dict(item) for key, item in names["default_cfgs"].items()}
    except Exception:  # noqa: BLE001 - a timm that writes them in another way; the user sets image_size then
        return {}
    found: dict[str, tuple[int, Input]] = {}
    for key, item in configurations.items():
        name, _, tag = key.partition(".")
        weights = any(item.get(place) for place in ("url", "file", "hf_hub_id"))
        # the default of several: timm/models/_registry.py, `generate_default_cfgs`
        rank = 2 if tag.endswith("*") or (weights and not tag) else int(weights)
        if name not in found or rank > found[name][0]:
            channels, side, _ = item.get("input_size", (3, 224, 224))
            found[name] = rank, Input(side, bool(item.get("fixed_input_size")), channels)
    return {name: own for name, (_, own) in found.items()}


class _Permissive(dict[str, Any]):
    """Names of a module, of which those that are not defined are None."""

    def __missing__(self, name: str) -> None:
        if name in __builtins__:  # type: ignore[operator]
            raise KeyError(name)


def _making(target: str, module: ast.Module) -> list[ast.stmt]:
    """The statements at the head of a module that the value of `target` depends on, in order."""
    plain = (ast.Assign, ast.AnnAssign, ast.For, ast.FunctionDef)
    statements = [item for item in module.body if isinstance(item, plain) and not getattr(item, "decorator_list", [])]
    needed, kept = {target}, set[int]()
    while True:
        more = {
            number
            for number, item in enumerate(statements)
            if number not in kept and not needed.isdisjoint(_defines(item))
        }
        if not more:
            return [statements[number] for number in sorted(kept)]
        kept |= more
        for number in more:
            needed |= {node.id for node in ast.walk(statements[number]) if isinstance(node, ast.Name)}


def _defines(statement: ast.stmt) -> Iterator[str]:
    """The names that a statement binds, or whose items it sets."""
    if isinstance(statement, ast.FunctionDef):
        yield statement.name
        return
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name):
            yield node.value.id


@functools.cache
def _parameters(family: str) -> frozenset[str]:
    """The parameters of all functions in a family's file and in those that it imports from beside it."""
    found: set[str] = set()
    seen, waiting = set[str](), [family, "_builder", "_factory"]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for node in ast.walk(ast.parse(_source(name))):
            if isinstance(node, ast.arguments):
                found |= {argument.arg for argument in (*node.args, *node.kwonlyargs)}
            elif isinstance(node, ast.ImportFrom) and node.level == 1 and node.module and node.module[0] != "_":
                waiting.append(node.module)
    return frozenset(found - {"self", "x"})


def refuse_setting(family: str, name: str, value: SettingValue) -> str | None:
    """Why a keyword argument of `timm.create_model` is refused, or `None`. The constructor has the last word."""
    if name in REFUSED_SETTINGS:
        return f'"{name}" is not a setting: {REFUSED_SETTINGS[name]}'
    if name not in _parameters(family):
        near = nearest_sentence(nearest(name, _parameters(family)))
        return f'timm has no argument "{name}" for models of {family}. {near}'.rstrip()
    refused = Setting(None, ANY_VALUE).check(value)
    return refused and f"setting {name}: {refused}"


def refuse_error(
    name: str, family: str, images: ImageSpec, settings: Mapping[str, SettingValue], error: BaseException
) -> str | None:
    """Why the case cannot run where `error` is of images that are not the model's own; None for other errors."""
    own, text = inputs_of(family).get(name), message_of(error)
    if own is None or own.is_of(images) or isinstance(error, BenchError) or _ABOUT_THE_DEVICE.search(text):
        return None
    if not (isinstance(error, AssertionError) or _ABOUT_SHAPES.search(text)):
        return None
    place = place_of(reversed(list(traceback.walk_tb(error.__traceback__))))  # all estimators fail there
    given, remedies = f"{images.height} x {images.width}", []
    if not images.height == images.width == own.side:
        remedies.append(f"set image_size, for example {own.side}, its own size")
    if images.channels != own.channels:
        given += f" with {counted(images.channels, 'channel')}"
        remedies.append(f"choose a data set of {counted(own.channels, 'channel')}")
    at = f" ({place})" if place else ""
    return f"{PREFIX}{name} cannot take images of {given}; {' or '.join(remedies)}{at}"


def build(name: str, family: str, images: ImageSpec, **settings: Any) -> torch.nn.Module:
    """Build timm's model on the CPU, untrained, for these images and classes.

    Args:
        name: Timm's, without the prefix.
        family: The file of timm that registers it.
        images: Shape of a sample, and the classes. A model of fixed size is built for it.
        settings: Keyword arguments of `timm.create_model`.

    Raises:
        Unsupported: The model cannot take images of this size or has no classifier, or a setting is not an argument of
            its constructor.
    """
    import timm

    own = inputs_of(family).get(name)
    sides = {"img_size": (images.height, images.width)} if own and own.fixed and own.side != images.height else {}
    arguments = {"pretrained": False, "num_classes": images.classes, "in_chans": images.channels, **settings}
    try:
        try:
            model: torch.nn.Module = timm.create_model(name, **arguments, **sides)
        except TypeError as error:
            if "img_size" not in message_of(error):
                raise
            model = timm.create_model(name, **arguments)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, TypeError) and (found := re.search(r"unexpected keyword argument '(\w+)'", str(error))):
            raise Unsupported(f'{PREFIX}{name} has no argument "{found[1]}"; remove the setting') from error
        if reason := refuse_error(name, family, images, settings, error):
            raise Unsupported(reason) from error
        raise
    if getattr(model, "num_classes", images.classes) != images.classes:  # of an encoder, 0 whatever it is given
        raise Unsupported(f"{PREFIX}{name} has no classifier: it returns features")
    return model


def explain(name: str) -> str | None:
    """Why a name with this prefix is not an entry, where there is more to say than that it is unknown."""
    if _folder() is None:
        return f'model "{name}": timm is not installed; {INSTALL}'
    bare, dot, tag = name.partition(".")
    if dot and any(entry.name == bare for entry in ENTRIES):
        return f'model "{name}": "{tag}" names weights, and models are untrained here; write {bare}'
    return None


def note_on_listing() -> str | None:
    """What a listing of models should say of those that it does not have."""
    return f"timm's models are not installed; {INSTALL}" if _folder() is None else None


def load_entries() -> tuple[ModelEntry, ...]:
    """One entry per model of the timm installed; none where it is not."""
    folder = _folder()
    return tuple(
        ModelEntry(
            f"{PREFIX}{name}",
            functools.partial(build, name, path.stem),
            f"timm, {path.stem}",
            own_side=functools.partial(_own_side, name, path.stem),
            is_tried=functools.partial(_is_tried, name, path.stem),
            refuse_setting=functools.partial(refuse_setting, path.stem),
            refuse_error=functools.partial(refuse_error, name, path.stem),
            package="timm",
        )
        for path in (sorted(folder.glob("*.py")) if folder else [])
        for name in _REGISTERED.findall(path.read_text(encoding="utf-8"))
    )


def _own_side(name: str, family: str) -> int | None:
    own = inputs_of(family).get(name)
    return own.side if own else None


def _is_tried(name: str, family: str, images: ImageSpec) -> bool:
    """Models of no fixed size may refuse images too: smaller than a kernel, or no multiple of a patch."""
    own = inputs_of(family).get(name)
    return own is not None and not own.is_of(images)


ENTRIES = load_entries()
