"""The founding formula: total = parameters + gradients + optimizer state + batch data + activations.

It is a rule of thumb that can be computed on paper and needs no explanation; the worked table of the founding documents
is one of its tests. Not included, and with it most of what a GPU reports for a small case: all that autograd saves
beside the counted outputs (inputs of activations, masks, indices, statistics, softmax of attention), temporaries of
forward, backward and the optimizer, labels (masks are counted), the output and the loss, buffers (running statistics),
the gradient scaler of fp16, autocast's copies of the weights, library workspaces, the allocator's rounding and
fragmentation, and the CUDA context.
"""

from __future__ import annotations

import math

from bench import catalog
from bench.errors import Unsupported
from bench.estimators.kept import refuse_compiled, shapes_of
from bench.estimators.recording import ModelShapes
from bench.plan import image_spec
from bench.records import Case, ImageSpec, Precision

FLOAT32_BYTES = 4
INT64_BYTES = 8

ACTIVATION_ELEMENT_BYTES: dict[Precision, int] = {"float32": 4, "tf32": 4, "bf16": 2, "fp16": 2}
"""Bytes of one number of a layer's output.

Autocast keeps parameters, gradients, optimizer state and the batch in float32 and is assumed to halve every counted
output. Convolutions and linear layers do; layer norm and softmax do not, which makes transformers come out low.
"""


def formula_bytes(
    *,
    parameter_bytes: int,
    gradient_bytes: int,
    optimizer_state_bytes: int | None,
    image_elements: int,
    sample_elements: int,
    batch_size: int,
    fixed_elements: int = 0,
    mask_elements: int = 0,
    precision: Precision = "float32",
) -> dict[str, int | None]:
    """The formula's arithmetic, in bytes, by the names of the columns.

    Activations are the outputs of the leaf modules that have parameters, but for the one whose output is the
    prediction: for the MNIST MLP the hidden layer alone, batch x 128 x 4 B.

    Args:
        parameter_bytes: Of all parameters.
        gradient_bytes: One gradient a trained parameter, of its size.
        optimizer_state_bytes: As the optimizer's entry gives it; `None` is unknown, and so is the total then.
        image_elements: Numbers in one sample, C x H x W.
        sample_elements: Numbers in the counted outputs for one sample.
        batch_size: Samples in a step, or in a micro-batch where it has several.
        fixed_elements: Numbers in counted outputs that do not grow with the batch.
        mask_elements: Pixels of one sample's mask, H x W int64 for segmentation; a label per image does not count.
        precision: Decides the size of an output's number, see `ACTIVATION_ELEMENT_BYTES`.

    Returns:
        `formula_bytes`, the total, and its five parts.
    """
    activations = (sample_elements * batch_size + fixed_elements) * ACTIVATION_ELEMENT_BYTES[precision]
    batch = batch_size * (image_elements * FLOAT32_BYTES + mask_elements * INT64_BYTES)
    known = parameter_bytes + gradient_bytes + batch + activations
    return {
        "formula_bytes": None if optimizer_state_bytes is None else known + optimizer_state_bytes,
        "formula_parameters_bytes": parameter_bytes,
        "formula_gradients_bytes": gradient_bytes,
        "formula_optimizer_state_bytes": optimizer_state_bytes,
        "formula_batch_bytes": batch,
        "formula_activations_bytes": activations,
    }


def estimate_formula(case: Case, images: ImageSpec | None = None) -> dict[str, int | None]:
    """The formula's fields of `Estimate` for a case; takes microseconds once its model was seen.

    Args:
        case: The case; device, input path and memory format do not matter.
        images: The case's images where they are known already; else they are looked up.

    Raises:
        Unsupported: The model cannot take the case's images, or is checkpointed or compiled.
        UnknownNameError: Unknown data set, model or optimizer.
    """
    refuse_compiled(case)
    if case.checkpointing != "none":
        raise Unsupported("no formula for a checkpointed model: it does not know what the blocks save")
    if catalog.model(case.model.name).inputs:
        raise Unsupported(f"no formula for {case.model}: it counts the layers of models that take images")
    images = images or image_spec(case.dataset, case.image_size)
    shapes = shapes_of(case.model, images)
    entry = catalog.optimizer(case.optimizer.name)
    state = None
    if entry.state_bytes is not None:
        state = entry.state_bytes(shapes.trained, FLOAT32_BYTES, case.optimizer.options)
    return formula_bytes(
        parameter_bytes=shapes.parameter_bytes,
        gradient_bytes=_largest_bytes(shapes) if case.update == "in_backward" else shapes.trained_bytes,
        optimizer_state_bytes=state,
        image_elements=math.prod(images.shape),
        sample_elements=shapes.sample_elements,
        fixed_elements=shapes.fixed_elements,
        mask_elements=math.prod(images.target_shape) if images.task == "segmentation" else 0,
        batch_size=case.micro_batch_size,
        precision=case.precision,
    )


def _largest_bytes(shapes: ModelShapes) -> int:
    """Of the largest gradient: the others are gone when it is there."""
    return max((math.prod(shape) for shape in shapes.trained), default=0) * FLOAT32_BYTES
