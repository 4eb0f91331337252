"""The operators that vision models call: `python -m tests.oracle.called LIBRARY... > tests/oracle/called_operators.txt`.

Models of torchvision, timm and transformers (whichever of them are named) take one step, forward and backward, on the
meta device, at their own image sizes and without weights: every classification and segmentation model of torchvision,
the first, shortest and longest name of each module of timm, and every classifier of transformers in its default form.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

LISTED = Path(__file__).with_name("called_operators.txt")
Built = tuple[torch.nn.Module, int]
"""A model and the side of its images in pixels."""


class CalledOperators(TorchDispatchMode):
    """While entered, notes the operators that are called: `aten.add.Tensor`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(operator))
        return operator(*args, **(kwargs or {}))


def listed() -> dict[str, list[str]]:
    """The operators of the file, each with the libraries whose models call it."""
    lines = LISTED.read_text(encoding="utf-8").splitlines()
    return {name: libraries for name, *libraries in (line.split() for line in lines if not line.startswith("#"))}


def called_by(build: Callable[[str], Built], name: str) -> tuple[set[str], str | None]:
    """The operators of one step, and why it ended early, if it did: there are no values to read."""
    called, stopped = CalledOperators(), None
    with torch.device("meta"):
        model, side = build(name)
        images = torch.zeros(2, 3, side, side)
        try:
            with called:
                sum((part * part).sum() for part in _floats(model.train()(images))).backward()
        except (RuntimeError, NotImplementedError) as error:
            stopped = str(error).partition("\n")[0]
    return called.names, stopped


def _floats(output: Any) -> Iterator[torch.Tensor]:
    """What a loss may be made of: `logits` where the output has them."""
    output = getattr(output, "logits", output)
    if isinstance(output, torch.Tensor):
        yield output
    else:
        for part in output.values() if hasattr(output, "values") else output:
            yield from _floats(part)


def torchvision_names() -> list[str]:
    """Of models for classification and segmentation, but its regnets, which cannot be built on the meta device."""
    from torchvision.models import get_model_builder, list_models

    left_out = ("detection", "video", "optical_flow", "quantization", "regnet")
    return [name for name in list_models() if get_model_builder(name).__module__.split(".")[2] not in left_out]


def build_torchvision(name: str) -> Built:
    """Without weights."""
    from torchvision.models import get_model, get_model_builder

    parts = {"weights_backbone": None} if "segmentation" in get_model_builder(name).__module__ else {}
    return get_model(name, weights=None, **parts), 299 if name == "inception_v3" else 224


def timm_names() -> list[str]:
    """The first, the shortest and the longest of each module."""
    from timm.models import list_models, list_modules

    found: list[str] = []
    for module in list_modules():
        names = list_models(module=module)
        found += names and [names[0], min(names, key=len), max(names, key=len)]
    return list(dict.fromkeys(found))


def build_timm(name: str) -> Built:
    """At the size of its own configuration."""
    import timm

    model = timm.create_model(name)
    return model, (getattr(model, "default_cfg", {}).get("input_size") or (3, 224, 224))[-1]


def transformers_names() -> list[str]:
    """Its classifiers."""
    import transformers

    stems = [name.removesuffix(CLASSIFIER) for name in dir(transformers) if name.endswith(CLASSIFIER)]
    return [stem for stem in stems if hasattr(transformers, f"{stem}Config")]


def build_transformers(name: str) -> Built:
    """In its default form."""
    import transformers

    config = getattr(transformers, f"{name}Config")()
    size = getattr(getattr(config, "vision_config", config), "image_size", 224)
    return getattr(transformers, name + CLASSIFIER)(config), size if isinstance(size, int) else size[-1]


CLASSIFIER = "ForImageClassification"
LIBRARIES: dict[str, tuple[Callable[[], list[str]], Callable[[str], Built]]] = {
    "timm": (timm_names, build_timm),
    "torchvision": (torchvision_names, build_torchvision),
    "transformers": (transformers_names, build_transformers),
}


def main() -> None:
    """Print the list."""
    warnings.simplefilter("ignore")
    found: dict[str, set[str]] = {}
    for library in sys.argv[1:]:
        count, (names, build) = 0, LIBRARIES[library]
        for name in names():
            try:
                operators, stopped = called_by(build, name)
            except Exception as error:  # noqa: BLE001  a model that cannot be built so is named, and left out
                print(f"{library} {name}: {type(error).__name__}: {error}"[:150], file=sys.stderr)
                continue
            if stopped is not None:
                print(f"{library} {name}: stopped: {stopped}"[:150], file=sys.stderr)
            count += 1
            for operator in operators:
                found.setdefault(operator, set()).add(library)
        version = __import__(library).__version__
        print(f"# {library} {version}: {count} models")
    for operator in sorted(found):
        print(operator, *sorted(found[operator]))


if __name__ == "__main__":
    main()
