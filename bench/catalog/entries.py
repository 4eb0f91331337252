"""The entries of a catalog: a name, a one-line summary, settings, and how to build it.

A catalog's folder has one file per entry or family; each file defines `ENTRIES`, a tuple of the types below. Nothing
here, and nothing at the top of those files, imports torch: it is imported inside the functions that build.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from bench.catalog.settling import settles_after
from bench.errors import BenchError, nearest, nearest_sentence, phrase
from bench.records import Choice, ImageSpec, SettingValue, Task

if TYPE_CHECKING:
    import torch


class Within:
    """Limits of a number, for the annotation of a setting; pydantic is imported only where a value is checked."""

    def __init__(self, **limits: Any) -> None:
        """Take the limits by the names of pydantic's `Field`: `gt`, `ge`, `lt`, `le`, `allow_inf_nan`."""
        self.limits = limits

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """The schema of pydantic's own `Field`."""
        from pydantic import Field

        return handler.generate_schema(Annotated[source, Field(**self.limits)])


Scalar = bool | int | float | str
ANY_VALUE = Scalar | tuple[Scalar | tuple[Scalar, ...], ...] | None
"""The type of a setting of which no more is known."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of an entry: its default and its type (an annotation that pydantic understands)."""

    default: SettingValue | None
    kind: Any = float | int | bool | str | None

    def check(self, value: SettingValue | None) -> str | None:
        """Why `value` is refused, or `None` if it is accepted. Booleans are not numbers."""
        from pydantic import TypeAdapter, ValidationError

        try:
            TypeAdapter(self.kind).validate_python(value, strict=True)
        except ValidationError as error:
            said = [phrase(fault["type"], fault.get("ctx", {}), fault["msg"]) for fault in error.errors()[:5]]
            words = [words.removeprefix("must ") for words in said]
            return f"{value!r} is not allowed: it must {' or '.join(dict.fromkeys(words))} (default {self.default!r})"
        return None


def settings_of(build: Callable[..., Any]) -> Mapping[str, Setting]:
    """The settings of a building function: its keyword-only parameters, with their defaults and annotations."""
    found = {}
    for name, parameter in inspect.signature(build).parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        default = None if parameter.default is inspect.Parameter.empty else parameter.default
        annotation = parameter.annotation
        if isinstance(annotation, str):  # postponed; only this one is evaluated, so that others may name torch's types
            annotation = eval(annotation, build.__globals__)
        found[name] = Setting(default, annotation)
    return types.MappingProxyType(found)


class Samples(Protocol):
    """Images with labels or masks, as torchvision's data sets hand them out without transforms."""

    def __len__(self) -> int:
        """How many samples there are."""

    def __getitem__(self, index: int, /) -> tuple[Any, Any]:
        """The image (PIL, as stored) and its label, or for segmentation its mask (PIL, one class per pixel)."""


def _no_skip(images: ImageSpec, settings: Mapping[str, SettingValue]) -> str | None:
    return None


def _one_image(images: ImageSpec, settings: Mapping[str, SettingValue]) -> int:
    return 1


def _no_note(settings: Mapping[str, SettingValue]) -> str | None:
    return None


def _no_own_side() -> int | None:
    return None


def _never(images: ImageSpec) -> bool:
    return False


def _not_refused(images: ImageSpec, settings: Mapping[str, SettingValue], error: BaseException) -> str | None:
    return None


Loss = Callable[[Any, "torch.Tensor"], "torch.Tensor"]
Step = Callable[[Any, Any, tuple[Any, ...]], Any]
"""`(model, optimizer, batch) -> anything`: one optimizer step of a user's own; the batch is a tuple of tensors."""

INPUT_TYPES = (
    *("float32", "float64", "float16", "bfloat16", "complex64", "complex128"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)
_INPUT = re.compile(r"\s*(?P<dtype>\w+)\s*\[(?P<shape>[^\[\]]*)\]\s*")


@dataclass(frozen=True, slots=True)
class InputSpec:
    """A tensor of a batch, declared as `int64[B,128]`; B is the batch size, of a micro-batch where there are several.

    Attributes:
        dtype: Torch's name of the type.
        shape: Sizes; None is the batch size.
    """

    dtype: str
    shape: tuple[int | None, ...]

    @classmethod
    def parse(cls, text: str) -> InputSpec:
        """From the text of a declaration. Raises BenchError."""
        found = _INPUT.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise BenchError(
                f"inputs: {text!r} is not a type and a shape, such as 'int64[B,128]' (B is the batch size)"
            )
        if found["dtype"] not in INPUT_TYPES:
            near = nearest_sentence(nearest(found["dtype"], INPUT_TYPES))
            raise BenchError(
                f"inputs: {text!r}: unknown type {found['dtype']}. {near}Allowed: {', '.join(INPUT_TYPES)}"
            )
        sizes = [size.strip() for size in found["shape"].split(",")] if found["shape"].strip() else []
        if wrong := [size for size in sizes if size != "B" and not (size.isascii() and size.isdigit())]:
            raise BenchError(f"inputs: {text!r}: {wrong[0]!r} is not a size; a whole number or B is needed")
        return cls(found["dtype"], tuple(None if size == "B" else int(size) for size in sizes))

    def sized(self, batch_size: int) -> tuple[int, ...]:
        """The shape at a batch size."""
        return tuple(batch_size if size is None else size for size in self.shape)


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model or one member of a family.

    Attributes:
        name: As users write it.
        build: `(images: ImageSpec, *, <settings>) -> torch.nn.Module` on the CPU, initialised from torch's seed; maps
            float32 `(B, C, H, W)` to `(B, classes)`, or for segmentation to `(B, classes, H, W)` or a dictionary of
            such, of which `out` is the prediction. By raising a ValueError it refuses the images or the settings, and
            the case is skipped.
        summary: One line for `bench list models`.
        skip_reason: `(images, settings) -> why the model cannot take these images`, or `None`; torch-free.
        smallest_batch: `(images, settings) -> how few images a batch may have`; torch-free. A batch norm needs more
            than one value per channel.
        task: What it predicts. It trains on data sets of the same task only; `None`: on any.
        settings: Read from `build` unless given.
        loss: `(output, labels) -> scalar tensor`, for a model whose output in training is another, or that trains with
            another loss; unless given, that of the task (`bench.workload.targets.LOSSES`). Labels are int64, `(B,)`
            classes or `(B, H, W)` masks.
        note: `settings -> what a reader should know about the model`, if its name is misleading; or `None`.
        own_side: `() -> side in pixels of the images that the model was made for`, which a case without an image size
            gets; `None` for the data set's. Torch-free.
        is_tried: `(images) -> whether only a trial tells if the model takes them`: planning then runs it on them, in a
            child and without memory. Torch-free.
        refuse_setting: `(name, value) -> why not`, or `None`, for settings beyond those listed; torch-free. Unless
            given, there are none.
        refuse_error: `(images, settings, error) -> why the case cannot run` where `error`, raised by a step or a trial,
            says so.
        package: The distribution that the model's code comes from, if its version is not part of every key.
        inputs: The tensors of a batch, if they are not images and labels: `("int64[B,128]", "int64[B,128]")`. Two are
            input and target of the usual step. More, or fewer, need a `step`.
        step: The model's own training step, in place of the usual one: `(model, optimizer, batch) -> anything`. What it
            returns is kept until the next step has ended, as a training loop does. It decides on precision, on
            zero_grad and on the number of batches itself, so a case leaves those axes alone.
    """

    name: str
    build: Callable[..., torch.nn.Module]
    summary: str = ""
    skip_reason: Callable[[ImageSpec, Mapping[str, SettingValue]], str | None] = _no_skip
    settings: Mapping[str, Setting] = field(default_factory=dict)
    loss: Loss | None = None
    note: Callable[[Mapping[str, SettingValue]], str | None] = _no_note
    smallest_batch: Callable[[ImageSpec, Mapping[str, SettingValue]], int] = _one_image
    task: Task | None = "classification"
    own_side: Callable[[], int | None] = _no_own_side
    is_tried: Callable[[ImageSpec], bool] = _never
    refuse_setting: Callable[[str, SettingValue], str | None] | None = None
    refuse_error: Callable[[ImageSpec, Mapping[str, SettingValue], BaseException], str | None] = _not_refused
    package: str | None = None
    inputs: tuple[str, ...] = ()
    step: Step | None = None

    def __post_init__(self) -> None:
        """Read the settings from the building function where none are given. Raises BenchError of wrong inputs."""
        if not self.settings:
            object.__setattr__(self, "settings", settings_of(self.build))
        if not isinstance(self.inputs, tuple | list):
            raise BenchError(f"inputs {self.inputs!r}: a list of declarations is needed, such as ['int64[B,128]']")
        object.__setattr__(self, "inputs", tuple(self.inputs))
        if len(self.input_specs) != 2 and self.inputs and self.step is None:
            raise BenchError(
                f"{self.name}: {len(self.inputs)} inputs and no step of its own; the usual step takes two, the input "
                "and the target. Give step=..., a function (model, optimizer, batch)"
            )

    @property
    def input_specs(self) -> tuple[InputSpec, ...]:
        """The declared inputs; empty if the model takes images. Raises BenchError."""
        return tuple(InputSpec.parse(text) for text in self.inputs)

    def refusal(self, images: ImageSpec, settings: Mapping[str, SettingValue]) -> str | None:
        """Why the model cannot train on these images and their labels, or `None`; torch-free."""
        if self.task not in (None, images.task):
            return (
                f"{self.name} is a {self.task} model, and the data set is for {images.task}; choose a model and a data "
                "set of the same task"
            )
        return self.skip_reason(images, settings)


@dataclass(frozen=True, slots=True)
class OptimizerEntry:
    """An optimizer with its defaults.

    Attributes:
        name: As users write it.
        build: `(parameters: list[torch.nn.Parameter], *, <settings>) -> torch.optim.Optimizer`. By raising a ValueError
            it refuses the parameters or the settings, and the case is skipped.
        summary: One line for `bench list optimizers`.
        state_bytes: `(shapes: parameter shapes, element_bytes, settings) -> bytes` of state on the parameters' device
            once it has settled, by the sum of the state's tensors (no rounding); `None` if unknown.
        refuse_reason: `(shapes, settings) -> why this optimizer cannot train these parameters`, or `None`.
        settings: Read from `build` unless given.
        settles_after: `(optimizer) -> steps` after which each step asks for the same memory. The first makes the state,
            so it is 1 unless the optimizer changes its way later; torch's own are known.
        takes_closure: Whether its step evaluates the model again, by a closure.
        assumption: What the trace assumes of values that it does not have; None if the step does not depend on them.
    """

    name: str
    build: Callable[..., torch.optim.Optimizer]
    summary: str = ""
    state_bytes: Callable[[Sequence[tuple[int, ...]], int, Mapping[str, SettingValue]], int] | None = None
    refuse_reason: Callable[[Sequence[tuple[int, ...]], Mapping[str, SettingValue]], str | None] | None = None
    settings: Mapping[str, Setting] = field(default_factory=dict)
    settles_after: Callable[[torch.optim.Optimizer], int] = settles_after
    takes_closure: bool = False
    assumption: str | None = None

    def __post_init__(self) -> None:
        """Read the settings from the building function where none are given."""
        if not self.settings:
            object.__setattr__(self, "settings", settings_of(self.build))


@dataclass(frozen=True, slots=True)
class FilesFound:
    """What the files of a data set's training part hold.

    Attributes:
        samples: How many images.
        hash: 16 digits for their contents; the same for a copy in any place.
    """

    samples: int
    hash: str

    @classmethod
    def of(cls, samples: int, *contents: bytes) -> FilesFound:
        """From all that they hold."""
        found = hashlib.sha256()
        for content in contents:
            found.update(content)
        return cls(samples, found.hexdigest()[:16])


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """A data set as far as it is known without reading its images.

    Attributes:
        images: Shape of one sample at the data set's own size, its number of classes, and its task.
        class_names: One name per class, or empty if they have none.
        mean: The normalisation's mean per channel, for images scaled to [0, 1].
        std: The normalisation's standard deviation per channel.
        train_samples: How many images the training part has.
        test_samples: How many the test part has.
        on_disk: `(root) -> True` where its files lie under `root` (or in a folder of its own); torch-free.
        open: `(root, train) -> Samples`; raises `DataError` where files are missing or damaged. `None`: synthetic only.
        fetch: `(root) -> None` downloads it; raises `DataError` with one clear line. `None`: cannot be fetched.
        resize: Whether images must be resized (their sizes differ), even at the data set's own size.
        from_files: Whether the number of classes was read off files, and may change while the name stays.
        find: `(root) -> FilesFound`, in bounded time; raises `DataError` where a file cannot be read. Part of the key
            of runs that read images. `None`: what the files hold is not known, and no part of it.
        check: `(root) -> None` looks into as many images as can be in a moment; raises `DataError` where a run would
            fail. `None`: `find` does.
        notes: What a user should know of how the files were understood; one sentence each.
    """

    images: ImageSpec
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train_samples: int
    test_samples: int
    on_disk: Callable[[Path], bool] = lambda root: False
    open: Callable[[Path, bool], Samples] | None = None
    fetch: Callable[[Path], None] | None = None
    resize: bool = False
    from_files: bool = False
    find: Callable[[Path], FilesFound] | None = None
    check: Callable[[Path], None] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DatasetEntry:
    """A data set, or a kind of data set that its settings complete.

    Attributes:
        name: As users write it.
        describe: `(*, <settings>) -> DatasetInfo`; torch-free; raises `DataError` where a folder it needs is not there.
        summary: One line for `bench list datasets`.
        settings: Read from `describe` unless given.
        positional: The setting that may be written bare after the colon: `folder:PATH`.
    """

    name: str
    describe: Callable[..., DatasetInfo]
    summary: str = ""
    settings: Mapping[str, Setting] = field(default_factory=dict)
    positional: str | None = None

    def __post_init__(self) -> None:
        """Read the settings from the describing function where none are given."""
        if not self.settings:
            object.__setattr__(self, "settings", settings_of(self.describe))


Entry = ModelEntry | OptimizerEntry | DatasetEntry


def normalise(entry: Entry, choice: Choice) -> Choice:
    """The choice without settings that equal their defaults, so that equal cases have equal keys."""
    kept = {
        key: value
        for key, value in choice.settings
        if key not in entry.settings or entry.settings[key].default != value
    }
    return Choice.of(choice.name, kept)
