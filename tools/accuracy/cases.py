"""The choice of cases: every model and every value of every axis in turn, combined at random from a stored seed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

from bench import catalog
from bench.catalog import ModelEntry
from bench.errors import BenchError
from bench.plan import image_spec, skip_reason
from bench.records import Case, Choice, MemoryFormat, Precision, Task

SEED = 20261121
DEVICES = ("h200", "a100_80gb")
TOO_LARGE = ("vit_h_14", "regnet_y_128gf")
"""Models of 600 million parameters, which this machine's own memory would have to hold."""

OPTIMIZERS = (
    "sgd",
    "sgd:foreach=false",
    "sgd:fused=true",
    "sgd_momentum",
    "sgd_momentum:foreach=false",
    "sgd_momentum:fused=true",
    "adam",
    "adam:foreach=false",
    "adam:fused=true",
    "adamw",
    "adamw:foreach=false",
    "adamw:fused=true",
    "rmsprop",
    "rmsprop:foreach=false",
    "adagrad",
    "adafactor",
)
"""The five of the goal, as torch chooses (many tensors a kernel), one by one, and fused; and two more."""

PRECISIONS: tuple[Precision, ...] = ("float32", "bf16")
FORMATS: tuple[MemoryFormat, ...] = ("contiguous", "channels_last")
SMALL_BATCHES = (1, 2, 3, 4, 8, 16, 32, 64)
LARGE_BATCHES = (128, 256, 512, 1024)
BATCHES = (1, 1, 2, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1024)
MLP_BATCHES = (1, 2, 3, 7, 16, 64, 100, 256, 1000, 1024, 4096)
MLP_DATASETS = (("mnist", 0), ("cifar10", 0), ("imagenet", 64))
HIDDEN = (16, 128, 500, 1024, 4096)
SMALL_IMAGES = (224, 224, 224, 160, 96, 299)
LARGE_BATCH_IMAGES = (64, 96)
MAX_PLANNED_BATCH = 256
MASK_BATCHES = (2, 3, 4, 8, 16, 32)
MASK_IMAGES = (64, 100, 224, 480, 520)

_CHOSEN: tuple[Literal["dataset", "model", "optimizer"], ...] = ("dataset", "model", "optimizer")
T = TypeVar("T")


@dataclass(frozen=True)
class Point:
    """A case on a device."""

    case: Case
    device: str

    @property
    def axes(self) -> dict[str, Any]:
        """The case as JSON carries it."""
        return self.case.axes

    @property
    def family(self) -> str:
        """The file of torchvision that the model comes from; `mlp` for the founding family."""
        return family_of(self.case.model.name)

    @property
    def way(self) -> str:
        """How the optimizer goes through the parameters."""
        options = self.case.optimizer.options
        if options.get("capturable"):
            return "capturable"
        return "fused" if options.get("fused") else "for loop" if options.get("foreach") is False else "default"


def family_of(model: str) -> str:
    """The family of a model by the summary of its entry."""
    summary = catalog.model(model).summary
    return summary.removeprefix("torchvision, ").partition(";")[0] if summary.startswith("torchvision, ") else model


def case_of(axes: dict[str, Any]) -> Case:
    """The case that `Case.axes` describes."""
    fields = dict(axes)
    for kind in _CHOSEN:
        fields[kind] = catalog.parse_choice(kind, axes[kind])
    return Case(**fields)


def torchvision_models() -> list[str]:
    """Names of the classification models that are drawn from."""
    return [name for name in _models_for("classification") if name not in TOO_LARGE]


def _models_for(task: Task) -> list[str]:
    entries = [cast(ModelEntry, entry) for entry in catalog.entries("model").values()]
    return [entry.name for entry in entries if entry.summary.startswith("torchvision") and entry.task == task]


def draw_vision(count: int, seed: int = SEED) -> list[Point]:
    """`count` cases of torchvision's models, each model as often as any other, and so with each axis's values.

    A smaller count gives the beginning of a larger one's list.
    """
    axes = zip(
        in_turns(torchvision_models(), count, seed, "model"),
        in_turns(OPTIMIZERS, count, seed, "optimizer"),
        in_turns(PRECISIONS, count, seed, "precision"),
        in_turns(FORMATS, count, seed, "format"),
        in_turns(BATCHES, count, seed, "batch"),
        in_turns(DEVICES, count, seed, "device"),
        strict=True,
    )
    points = []
    for index, (model, optimizer, precision, memory_format, batch, device) in enumerate(axes):
        dataset, size, fitting = _images(model, batch, random.Random(f"{seed} images {index}"))
        case = Case(
            Choice(dataset),
            Choice(model),
            catalog.parse_choice("optimizer", optimizer),
            fitting,
            precision,
            memory_format,
            image_size=size,
        )
        points.append(Point(case, device))
    return list(dict.fromkeys(points))


def draw_mlps(count: int, seed: int = SEED) -> list[Point]:
    """`count` cases of the founding family at several widths, on grey and colour images; see `draw_vision`."""
    axes = zip(
        in_turns(HIDDEN, count, seed, "width"),
        in_turns(OPTIMIZERS, count, seed, "MLP optimizer"),
        in_turns(PRECISIONS, count, seed, "MLP precision"),
        in_turns(MLP_BATCHES, count, seed, "MLP batch"),
        in_turns(DEVICES, count, seed, "MLP device"),
        in_turns(MLP_DATASETS, count, seed, "MLP images"),
        strict=True,
    )
    points = []
    for hidden, optimizer, precision, batch, device, (dataset, size) in axes:
        model = Choice.of("mlp", {} if hidden == 128 else {"hidden": hidden})
        chosen = catalog.parse_choice("optimizer", optimizer)
        points.append(Point(Case(Choice(dataset), model, chosen, batch, precision, image_size=size), device))
    return list(dict.fromkeys(points))


ODD_SIDES, ODD_BATCHES = range(33, 300, 2), (1, 3, 7)


def draw_odd(count: int, seed: int = SEED) -> list[Point]:
    """`count` cases of torchvision's models on images of odd sides, at batches that no power of two divides."""
    axes = zip(
        in_turns(torchvision_models(), count, seed, "odd model"),
        in_turns(OPTIMIZERS, count, seed, "odd optimizer"),
        in_turns(PRECISIONS, count, seed, "odd precision"),
        in_turns(FORMATS, count, seed, "odd format"),
        in_turns(ODD_BATCHES, count, seed, "odd batch"),
        in_turns(ODD_SIDES, count, seed, "odd side"),
        in_turns(DEVICES, count, seed, "odd device"),
        strict=True,
    )
    points = []
    for model, optimizer, precision, memory_format, batch, side, device in axes:
        chosen = catalog.parse_choice("optimizer", optimizer)
        case = Case(Choice("imagenet"), Choice(model), chosen, batch, precision, memory_format, image_size=side)
        if skip_reason(case, "cuda") is None:
            points.append(Point(case, device))
    return list(dict.fromkeys(points))


SWITCHED: tuple[dict[str, Any], ...] = (
    {"accumulation": 2},
    {"accumulation": 4},
    {"checkpointing": "blocks"},
    {"update": "in_backward"},
    {"zero_grad": "zeros"},
    {"allocator": "expandable"},
)
"""The switches that are estimated, one by one."""


def draw_switches(models: int, seed: int = SEED) -> list[Point]:
    """Cases of `models` models with blocks, each with every switch and every pair of two switches in turn.

    Each model gets two single switches and two pairs.
    """
    pairs = [one | other for one, other in itertools.combinations(SWITCHED, 2) if _go_together(one, other)]
    names = [name for name in torchvision_models() if family_of(name) not in ("alexnet", "vgg")]
    chosen = in_turns(names, models, seed, "switched model")
    settings = zip(
        in_turns(SWITCHED, 2 * models, seed, "one switch"),
        in_turns(pairs, 2 * models, seed, "two switches"),
        strict=True,
    )
    axes = zip(
        [name for name in chosen for _ in range(4)],
        [item for both in settings for item in both],
        in_turns(OPTIMIZERS, 4 * models, seed, "switched optimizer"),
        in_turns(PRECISIONS, 4 * models, seed, "switched precision"),
        in_turns((4, 8, 16), 4 * models, seed, "switched batch"),
        in_turns(DEVICES, 4 * models, seed, "switched device"),
        strict=True,
    )
    points = []
    for index, (model, switches, optimizer, precision, batch, device) in enumerate(axes):
        dataset, size, _ = _images(model, batch, random.Random(f"{seed} switched images {index}"))
        chosen_optimizer = catalog.parse_choice("optimizer", optimizer)
        case = Case(Choice(dataset), Choice(model), chosen_optimizer, batch, precision, image_size=size, **switches)
        points.append(Point(case, device))
    return list(dict.fromkeys(points))


def _go_together(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two switches are of two axes and do not exclude each other, as the plan has it."""
    both = {**one, **other}
    case = Case(Choice("imagenet"), Choice("resnet18"), Choice("sgd"), 8, image_size=64, **both)
    return len(both) == 2 and skip_reason(case, "cuda") is None


def optimizer_ways() -> list[str]:
    """Every optimizer that can train a model here, in each way it can go."""
    found = []
    for name, entry in catalog.entries("optimizer").items():
        for way in ("", "foreach=false", "fused=true", "capturable=true", "capturable=true,foreach=false"):
            words = f"{name}:{way}" if way else name
            if name == "asgd":
                words += f"{',' if way else ':'}t0=1.0"  # the stub keeps no numbers, so that it averages always
            if words == "lbfgs":  # a loss that does not change ends no step, and the history is full after the warm-up
                words += ":max_iter=4,history_size=12,tolerance_change=0.0"
            try:
                options = catalog.parse_choice("optimizer", words).options
            except BenchError:
                continue  # it has no such way
            if entry.refuse_reason is None or entry.refuse_reason((), options) is None:
                found.append(words)
    return found


def draw_optimizers(count: int, seed: int = SEED) -> list[Point]:
    """`count` cases of every optimizer in each way, on torchvision's models in turn; see `draw_vision`."""
    axes = zip(
        in_turns(optimizer_ways(), count, seed, "way"),
        in_turns(torchvision_models(), count, seed, "model of a way"),
        in_turns(PRECISIONS, count, seed, "precision of a way"),
        in_turns(SMALL_BATCHES, count, seed, "batch of a way"),
        in_turns(DEVICES, count, seed, "device of a way"),
        strict=True,
    )
    points = []
    for index, (optimizer, model, precision, batch, device) in enumerate(axes):
        dataset, size, fitting = _images(model, batch, random.Random(f"{seed} images of a way {index}"))
        chosen = catalog.parse_choice("optimizer", optimizer)
        points.append(Point(Case(Choice(dataset), Choice(model), chosen, fitting, precision, image_size=size), device))
    return list(dict.fromkeys(points))


def draw_convolutions(count: int, seed: int = SEED) -> list[Point]:
    """`count` cases of models with convolutions, at batches whose plans cuDNN is asked for within seconds."""
    points = draw_vision(4 * count, seed + 1)
    chosen = [
        point
        for point in points
        if point.family not in ("swin_transformer", "vision_transformer") and point.case.batch_size <= MAX_PLANNED_BATCH
    ]
    return chosen[:count]


def draw_segmentation(count: int, seed: int = SEED) -> list[Point]:
    """`count` cases of the segmentation models, with and without their auxiliary heads; see `draw_vision`."""
    models = [f"{name}{aux}" for name in _models_for("segmentation") for aux in ("", ":aux=true")]
    axes = zip(
        in_turns([model for model in models if model != "lraspp_mobilenet_v3_large:aux=true"], count, seed, "masks"),
        in_turns(OPTIMIZERS, count, seed, "masks optimizer"),
        in_turns(PRECISIONS, count, seed, "masks precision"),
        in_turns(FORMATS, count, seed, "masks format"),
        in_turns(MASK_BATCHES, count, seed, "masks batch"),
        in_turns(MASK_IMAGES, count, seed, "masks images"),
        in_turns(DEVICES, count, seed, "masks device"),
        strict=True,
    )
    points = []
    for model, optimizer, precision, memory_format, batch, size, device in axes:
        chosen = catalog.parse_choice("model", model), catalog.parse_choice("optimizer", optimizer)
        case = Case(Choice("voc_segmentation"), *chosen, batch, precision, memory_format, image_size=size)
        points.append(Point(case, device))
    return list(dict.fromkeys(points))


def in_turns(values: Sequence[T], count: int, seed: int, axis: str) -> list[T]:
    """`count` values, each as often as any other but for one, in a random order that the seed and the axis decide."""
    chance = random.Random(f"{seed} {axis}")
    drawn: list[T] = []
    while len(drawn) < count:
        drawn += chance.sample(list(values), len(values))
    return drawn[:count]


def _images(model: str, batch: int, chance: random.Random) -> tuple[str, int, int]:
    """A data set and an image size that the model takes, and the batch; large batches get small images."""
    if batch in LARGE_BATCHES:
        tried = [("imagenet", chance.choice(LARGE_BATCH_IMAGES)), ("cifar10", 0)]
    else:
        tried = [("imagenet", chance.choice(SMALL_IMAGES)) if chance.random() < 0.8 else ("cifar10", 0)]
    for dataset, size in tried:
        if catalog.model(model).skip_reason(image_spec(Choice(dataset), size), {}) is None:
            return dataset, size, batch
    return "imagenet", 224, min(batch, SMALL_BATCHES[-1])
