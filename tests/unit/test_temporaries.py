"""What kernels' host code allocates: sizes seen from torch's real allocator, and order."""

from __future__ import annotations

from typing import Any

import pytest

from bench.errors import Unsupported
from bench.estimators.recording import Call, Freed, Output, Phase, Recording, StepEnd, join_column
from bench.estimators.temporaries import Machine, script_of
from bench.estimators.temporaries.sums import reduction_buffers
from bench.estimators.tensors import Spec, channels_last, contiguous

H200 = Machine(132, 2048, (9, 0), (2, 15))
A100 = Machine(108, 2048, (8, 0), (2, 15))
OLD = Machine(132, 2048, (9, 0), (2, 6))


def script(
    operator: str, arguments: tuple[Any, ...], outputs: list[int], machine: Machine = H200
) -> list[tuple[int, int]]:
    spec = contiguous("float32", ())
    made = tuple(Output(number, nbytes, spec) for number, nbytes in enumerate(outputs))
    return script_of(Call(operator, arguments, made, Phase.FORWARD), machine)


def sizes(steps: list[tuple[int, int]]) -> list[int]:
    return [nbytes for _, nbytes in steps]


def test_short_reduction_needs_no_buffer() -> None:
    assert reduction_buffers(contiguous("float32", (64, 128)), (0,), "float32", 4, H200) == ()


def test_long_reduction_over_rows_is_staged() -> None:
    ((buffer, semaphores),) = reduction_buffers(contiguous("float32", (100_352, 96)), (0,), "float32", 4, H200)
    assert buffer > 0 and buffer % (4 * 96) == 0 and semaphores % 4 == 0


def test_staging_depends_on_the_number_of_multiprocessors() -> None:
    source = contiguous("float32", (100_352, 768))
    assert reduction_buffers(source, (0,), "float32", 4, H200) != reduction_buffers(source, (0,), "float32", 4, A100)


def test_reduction_over_2_gib_is_split_in_parts() -> None:
    source = contiguous("float32", (1 << 24, 64))
    assert len(reduction_buffers(source, (0,), "float32", 4, H200)) > 1


def test_channels_last_batch_norm_stages_as_seen() -> None:
    image = channels_last("bfloat16", (16, 64, 112, 112))
    found = script("aten::native_batch_norm", (image,), [image.nbytes, 256, 256], H200)
    assert sizes(found) == [image.nbytes, 256, 256, 131_072, 8, 0, 0]


def test_contiguous_batch_norm_stages_nothing() -> None:
    image = contiguous("bfloat16", (16, 64, 112, 112))
    assert len(script("aten::native_batch_norm", (image,), [1, 2, 3], H200)) == 3


def test_dropout_allocates_its_mask_first() -> None:
    source = contiguous("float32", (8, 1280))
    assert script("aten::native_dropout", (source, 0.2, True), [40_960, 10_240], H200) == [(1, 10_240), (0, 40_960)]


@pytest.mark.parametrize("operator", ["aten::_log_softmax", "aten::_softmax"])
def test_softmax_copies_an_operand_that_is_not_contiguous(operator: str) -> None:
    image = channels_last("float32", (8, 21, 100, 100))
    assert sizes(script(operator, (image, 1, False), [image.nbytes])) == [6_720_000, 6_720_000, 0]  # as recorded
    plain = contiguous("float32", (8, 21, 100, 100))
    assert sizes(script(operator, (plain, 1, False), [plain.nbytes])) == [6_720_000]


def test_the_loss_over_pixels_allocates_its_weight_first_and_copies_what_is_not_contiguous() -> None:
    image, target = contiguous("float32", (8, 21, 100, 100)), contiguous("int64", (8, 100, 100))
    assert script("aten::nll_loss2d_forward", (image, target, None, 1, 255), [4, 4]) == [(1, 4), (0, 4)]
    image = channels_last("float32", (8, 21, 100, 100))
    found = script("aten::nll_loss2d_forward", (image, target, None, 1, 255), [4, 4])
    assert found == [(1, 4), (0, 4), (-1, image.nbytes), (-1, 0)]


SLICE = Spec("float32", (8, 256, 13, 13), (216_320, 1, 16_640, 1280))
"""A part of the channels of a channels-last gradient, as recorded in a step of DeepLabV3."""


@pytest.mark.parametrize(
    ("gradient", "result", "expected"),
    [
        (SLICE, channels_last("float32", (8, 256, 1, 1)), [8192, 1_384_448, 0]),
        (contiguous("float32", (8, 21, 100, 100)), contiguous("float32", (8, 21, 13, 13)), [113_568]),
        (channels_last("float32", (8, 21, 100, 100)), channels_last("float32", (8, 21, 13, 13)), [113_568]),
        (
            channels_last("float32", (8, 3, 100, 100)),
            channels_last("float32", (8, 3, 13, 13)),
            [16_224, 16_224, 960_000, 0, 0],
        ),
        (SLICE, SLICE, [1_384_448]),
    ],
    ids=["slice", "contiguous", "channels last", "few channels", "same size"],
)
def test_bilinear_upsampling_copies_a_gradient_in_another_layout(
    gradient: Spec, result: Spec, expected: list[int]
) -> None:
    nbytes = result.numel * result.item_bytes
    call = Call("aten::upsample_bilinear2d_backward", (gradient,), (Output(0, nbytes, result),), Phase.BACKWARD)
    assert sizes(script_of(call, H200)) == expected


def test_roll_over_two_dimensions_makes_one_temporary() -> None:
    source = contiguous("float32", (4, 56, 56, 96))
    found = script("aten::roll", (source, (-3, -3), (1, 2)), [source.nbytes], H200)
    assert found == [(-1, source.nbytes), (0, source.nbytes), (-1, 0)]


@pytest.mark.parametrize(("machine", "expected"), [(H200, 33_554_432), (A100, 8_519_680)])
def test_product_takes_the_workspace_of_its_gpu(machine: Machine, expected: int) -> None:
    assert sizes(script("aten::mm", (), [100], machine)) == [100, expected, 0]


def test_kept_workspace_is_not_taken_at_each_product() -> None:
    assert script("aten::mm", (), [100], OLD) == [(0, 100)]


def test_depthwise_backward_allocates_the_weight_first() -> None:
    image, weight = contiguous("float32", (8, 960, 7, 7)), contiguous("float32", (960, 1, 3, 3))
    arguments = (image, image, weight, None, (1, 1), (1, 1), (1, 1), False, (0, 0), 960, (True, True, False))
    found = script("aten::convolution_backward", arguments, [image.nbytes, weight.nbytes], H200)
    assert sizes(found) == [weight.nbytes, image.nbytes]


def test_convolution_copies_an_expanded_gradient_for_each_half() -> None:
    image, weight = contiguous("float32", (4, 64, 8, 8)), contiguous("float32", (32, 64, 1, 1))
    gradient = Spec("float32", (4, 32, 8, 8), (32, 1, 0, 0))
    arguments = (gradient, image, weight, None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1, (True, True, False))
    found = script("aten::convolution_backward", arguments, [image.nbytes, weight.nbytes], H200)
    assert sum(nbytes for slot, nbytes in found if slot < 0) >= 4 * 32 * 8 * 8 * 4


def test_every_temporary_is_freed_once() -> None:
    query = contiguous("float32", (4, 12, 197, 64))
    arguments = (query, query, query, query, None, query, None, None, None, 0.0)
    found = script("aten::_scaled_dot_product_efficient_attention_backward", arguments, [1, 1, 1], H200)
    made = [slot for slot, nbytes in found if slot < 0 and nbytes]
    freed = [slot for slot, nbytes in found if slot < 0 and not nbytes]
    assert sorted(made) == sorted(freed)


def test_sums_of_many_short_rows_share_no_slot_with_copies() -> None:
    image, gradient = (Spec("float32", (70_000, 192), strides) for strides in ((1, 70_000), (1, 70_000)))
    row = contiguous("float32", (192,))
    arguments = (gradient, image, (192,), None, None, row, row, (True, True, True))
    outputs = tuple(Output(number, spec.nbytes, spec) for number, spec in enumerate((image, row, row)))
    live: set[int] = set()
    for slot, nbytes in script_of(Call("aten::native_layer_norm_backward", arguments, outputs, Phase.BACKWARD), H200):
        assert (slot not in live) == bool(nbytes)
        live ^= {slot}
    assert live == {0, 1, 2}


def test_column_interpolates_shapes_and_bytes() -> None:
    def at(batch: int) -> Recording:
        spec = contiguous("float32", (batch, 10))
        call = Call("aten::relu", (spec,), (Output(7, spec.nbytes, spec),), Phase.FORWARD, module="head")
        return Recording([StepEnd(0), call, Freed(7)])

    column = join_column(16, at(16), 48, at(48))
    assert column.at(100) == at(100)


def test_column_refuses_another_structure() -> None:
    with pytest.raises(Unsupported, match="runs differently"):
        join_column(16, Recording([StepEnd(0)]), 48, Recording([StepEnd(0), Freed(3)]))


@pytest.mark.parametrize(
    ("dims", "expected"),
    [
        ((-2,), [4, 138_412_032, 384, 0, 0]),  # seen from torch 2.15's allocator, in a step of Adafactor
        ((-1,), [4]),
        (None, [4, 2112, 4, 0, 0]),
    ],
)
def test_a_norm_is_a_reduction(dims: tuple[int, ...] | None, expected: list[int]) -> None:
    weight = contiguous("float32", (4096, 12_288))
    assert sizes(script("aten::linalg_vector_norm", (weight, 2, dims, True, None), [4], H200)) == expected


def test_a_norm_over_a_single_value_is_none() -> None:
    column = contiguous("float32", (1 << 20, 1))
    assert sizes(script("aten::linalg_vector_norm", (column, 2, (-1,), True, None), [4], H200)) == [4]


@pytest.mark.parametrize(
    ("capability", "version", "mib"),
    [
        ((9, 0), (2, 6), 32),
        ((10, 0), (2, 6), 8.125),
        ((12, 0), (2, 11), 8.125),
        ((12, 0), (2, 12), 32),
        ((11, 0), (2, 13), 8.125),
        ((11, 0), (2, 15), 32),
        ((8, 9), (2, 15), 8.125),
    ],
)
def test_cublas_workspace_follows_the_gpu_and_the_version(
    capability: tuple[int, int], version: tuple[int, int], mib: float
) -> None:
    assert Machine(132, 2048, capability, version).cublas_workspace_bytes == mib * (1 << 20)


def test_a_number_to_the_power_of_a_tensor_becomes_a_tensor_first() -> None:
    exponent = contiguous("float32", ())
    assert sizes(script("aten::pow.Scalar", (0.9, exponent), [4])) == [4, 8, 0]
    assert sizes(script("aten::pow.Scalar", (1, exponent), [4])) == [4]


def addmm(bias: Spec, beta: float, machine: Machine) -> int:
    """The workspace of a product with a bias."""
    left, right = contiguous("bfloat16", (8, 4)), contiguous("bfloat16", (4, 6))
    return sizes(script("aten::addmm", (bias, left, right, beta, 1), [96], machine))[1]


def test_a_bias_that_cublaslt_cannot_add_is_left_to_cublas() -> None:
    """As Muon has them: it scales a matrix, which lies column by column where the parameter is tall."""
    vector, matrix = contiguous("bfloat16", (6,)), contiguous("bfloat16", (8, 6))
    columns = Spec("bfloat16", (8, 6), (1, 8))
    lt, cublas = 1 << 20, 32 << 20
    assert [addmm(bias, beta, H200) for bias, beta in ((vector, 1), (matrix, 3.4), (columns, 3.4))] == [lt, lt, cublas]
    assert script("aten::addmm", (matrix, matrix, matrix, 3.4, 1), [96], OLD) == [(0, 96)]  # kept, not taken anew
