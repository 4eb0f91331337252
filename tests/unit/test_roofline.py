"""The roofline: kernels counted exactly, and times that follow what bounds them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.devices import Device, list_devices, load_device
from bench.errors import Unsupported
from bench.estimators.layers import build_on_meta
from bench.estimators.roofline import CONSTANTS, case_columns, estimate_speed
from bench.estimators.roofline.columns import NUMBERS, Columns, optimizer_columns, step_columns, to_columns
from bench.estimators.roofline.operators import Kernel, touched_bytes
from bench.estimators.roofline.recording import BACKWARD, FORWARD, Recorded, record_module, record_step
from bench.estimators.roofline.timing import kernel_times_s
from bench.records import Case, Choice, ImageSpec

IMAGENET = ImageSpec(3, 224, 224, 1000)
COLOUR = ImageSpec(3, 32, 32, 10)
MNIST = Case(Choice("mnist"), Choice("mlp"), Choice("sgd"), 64)
RESNET = Case(Choice("imagenet"), Choice("resnet50"), Choice("sgd_momentum"), 64)


def record(
    module: nn.Module, images: ImageSpec = COLOUR, batch: int = 4, narrow: torch.dtype | None = None
) -> Recorded:
    return record_module(module.to("meta").train(), images, batch, narrow)


def flops(recorded: Recorded, phase: str) -> float:
    return sum(kernel.flops for found, _, kernel in recorded if found == phase)


def kernels_of(recorded: Recorded, operator: str) -> list[Kernel]:
    return [kernel for _, name, kernel in recorded if name == operator]


def times(kernel: Kernel, device: Device, precision: str = "float32", memory_format: str = "contiguous") -> float:
    columns = to_columns([("forward", "", kernel)])
    return float(kernel_times_s(columns, device, precision, memory_format)[0])  # type: ignore[arg-type]


# what is counted


def test_flops_of_a_linear_layer_are_twice_its_weights_a_sample() -> None:
    recorded = record(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)))
    assert flops(recorded, FORWARD) == 2 * 4 * 3072 * 10
    assert flops(recorded, BACKWARD) == 2 * 4 * 3072 * 10  # no gradient of the images is asked for


def test_flops_and_bytes_of_a_convolution_are_exact() -> None:
    recorded = record(
        nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.Flatten(), nn.Linear(8 * 256, 10))
    )
    (kernel,) = kernels_of(recorded, "convolution")
    assert kernel.flops == 2 * 4 * 16 * 16 * 8 * 3 * 9
    assert kernel.nbytes == 4 * (4 * 3 * 32 * 32 + 8 * 3 * 9 + 4 * 8 * 16 * 16)
    assert (kernel.rows, kernel.columns, kernel.depth) == (4 * 256, 8, 27)


def test_each_gradient_of_a_grouped_convolution_takes_the_flops_of_its_forward() -> None:
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    forward = [kernel for kernel in kernels_of(record(layers), "convolution") if kernel.flops][1]
    backward = [kernel for kernel in kernels_of(record(layers), "convolution_backward") if kernel.products == 4]
    assert forward.flops == 2 * 4 * 32 * 32 * 8 * 2 * 9
    assert [kernel.flops for kernel in backward] == [forward.flops, forward.flops]


def test_convolution_of_one_channel_a_group_is_depthwise() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10))
    assert {kernel.kind for kernel in kernels_of(record(layers), "convolution") if kernel.flops} == {"depthwise"}


def test_relu_in_place_reads_and_writes_once_and_its_gradient_reads_two() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    recorded, image = record(layers), 4 * 4 * 8 * 32 * 32
    assert [kernel.nbytes for kernel in kernels_of(recorded, "relu_")] == [2 * image]
    assert [kernel.nbytes for kernel in kernels_of(recorded, "threshold_backward")] == [3 * image]


def test_views_launch_nothing() -> None:
    recorded = record(nn.Sequential(nn.Flatten(), nn.Unflatten(1, (3, 1024)), nn.Flatten(), nn.Linear(3072, 10)))
    assert not {"view", "t", "detach", "_unsafe_view"} & {name for _, name, _ in recorded}


def test_resnet50_takes_4_1_billion_multiplications_a_sample_forward_and_twice_that_backward() -> None:
    recorded = record_step(Choice("resnet50"), IMAGENET, 16)
    forward, backward = flops(recorded, FORWARD) / 16, flops(recorded, BACKWARD) / 16
    assert forward == pytest.approx(2 * 4.089e9, rel=1e-3)
    first = 2 * 112 * 112 * 64 * 3 * 49  # the images get no gradient
    assert backward == 2 * forward - first


def test_flops_are_those_of_torchs_own_counter() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    module = build_on_meta(Choice("vgg11"), IMAGENET)
    with FlopCounterMode(display=False) as counter:
        module(torch.empty(4, 3, 224, 224, device="meta"))
    assert flops(record_step(Choice("vgg11"), IMAGENET, 4), FORWARD) == counter.get_total_flops()


def test_expanded_tensor_counts_once_in_memory() -> None:
    assert touched_bytes(torch.empty(1, 5, device="meta").expand(4, 5)) == 4 * 5
    assert touched_bytes(torch.empty(4, 5, device="meta").T) == 4 * 4 * 5


def test_gradient_of_a_slice_is_zeros_everywhere_and_a_copy_of_the_slice() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3072, 20)

        def forward(self, images: Tensor) -> Tensor:
            return self.layer(images.flatten(1))[:, :10]

    kernels = [kernel.nbytes for kernel in kernels_of(record(Half()), "slice_backward") if kernel.nbytes]
    assert kernels[:2] == [4 * 4 * 20, 2 * 4 * 4 * 10]


# autocast


def test_autocast_narrows_products_and_widens_softmax_and_norms() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10), nn.LayerNorm(10), nn.Softmax(1))

        def forward(self, images: Tensor) -> Tensor:
            return self.layers(images)

    recorded = record(Model(), narrow=torch.float16)
    assert {kernel.dtype for kernel in kernels_of(recorded, "addmm")} == {"float16"}
    assert {
        kernel.dtype
        for name in ("native_layer_norm", "_softmax", "_log_softmax")
        for kernel in kernels_of(recorded, name)
    } == {"float32"}
    assert {kernel.dtype for kernel in kernels_of(recorded, "mm")} == {"float16"}


def test_autocast_casts_a_weight_once_however_often_it_is_used() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3072, 3072, bias=False)

        def forward(self, images: Tensor) -> Tensor:
            return self.layer(self.layer(images.flatten(1)))

    recorded = record(Twice(), narrow=torch.bfloat16)
    of_weight = [kernel for kernel in kernels_of(recorded, "_to_copy") if kernel.nbytes == 6 * 3072 * 3072]
    assert [kernel.dtype for kernel in of_weight] == ["bfloat16", "float32"]  # there, and its gradient back


def test_attention_is_one_kernel_forward_and_one_backward() -> None:
    recorded = record_step(Choice("vit_b_16"), IMAGENET, 8, torch.bfloat16)
    (forward, *others) = kernels_of(recorded, "_scaled_dot_product_efficient_attention")
    assert len(others) == 11
    assert (forward.kind, forward.dtype, forward.flops) == ("attention", "bfloat16", 8 * 12 * 4 * 197 * 197 * 64)
    assert len(kernels_of(recorded, "_scaled_dot_product_efficient_attention_backward")) == 12
    assert {kernel.dtype for name in ("mm", "addmm") for kernel in kernels_of(recorded, name)} == {"bfloat16"}


# the batch size


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "swin_t"])
def test_two_recordings_serve_every_batch_size(name: str) -> None:
    affine = step_columns(Choice(name), IMAGENET, 7, torch.float16)
    recorded = to_columns(record_step(Choice(name), IMAGENET, 7, torch.float16))
    assert list(affine.kind) == list(recorded.kind)
    assert np.array_equal(affine.numbers, recorded.numbers)


def test_batch_of_one_is_recorded_by_itself() -> None:
    recorded = to_columns(record_step(Choice("vit_b_32"), COLOUR, 1))
    found = step_columns(Choice("vit_b_32"), COLOUR, 1)
    assert np.array_equal(found.numbers, recorded.numbers)
    assert len(found.kind) != len(step_columns(Choice("vit_b_32"), COLOUR, 2).kind)


def test_step_takes_longer_the_larger_the_batch_and_samples_come_no_slower() -> None:
    device = load_device("rtx3090")
    found = [estimate_speed(replace(RESNET, batch_size=batch), device) for batch in (2, 8, 32, 128, 512)]
    device_times, rates = [one.device_time_s for one in found], [one.samples_per_s for one in found]
    assert device_times == sorted(set(device_times))
    assert rates == sorted(rates)


# times


def test_kernel_bound_by_bandwidth_follows_bandwidth_alone() -> None:
    device = load_device("rtx3090")
    kernel = Kernel("elementwise", nbytes=1e9)
    slow, fast = times(kernel, device), times(kernel, replace(device, memory_bandwidth_bytes_per_s=2 * 9.36096e11))
    assert slow - CONSTANTS.launch_s == pytest.approx(1e9 / (9.36096e11 * CONSTANTS.memory_frac))
    assert slow - CONSTANTS.launch_s == pytest.approx(2 * (fast - CONSTANTS.launch_s))
    assert times(kernel, replace(device, peak_float32_flop_per_s=1e12)) == slow


def test_large_product_follows_the_peak_rate_of_its_type() -> None:
    device = load_device("a100_80gb")
    wide = Kernel("matmul", "float32", flops=2e13, nbytes=1e8, rows=1e4, columns=1e4, depth=1e5)
    narrow = wide._replace(dtype="bfloat16")
    assert times(wide, device) == pytest.approx(times(narrow, device, "bf16") * 312 / 19.5, rel=0.25)
    assert times(wide, device, "tf32") < times(wide, device) / 4
    assert times(wide, replace(device, peak_float32_flop_per_s=1.95e13 / 2)) == pytest.approx(
        2 * times(wide, device), rel=1e-3
    )


def test_product_with_few_channels_reaches_less_of_the_peak() -> None:
    device = load_device("rtx3090")
    full = Kernel("convolution", flops=1e12, rows=1e5, columns=512, depth=4608)
    assert times(full._replace(columns=8, depth=27), device) > 4 * times(full, device)


def test_convolution_with_few_tiles_leaves_multiprocessors_idle_unless_they_share_its_sum() -> None:
    device = load_device("rtx3090")
    few = Kernel("convolution", flops=1e9, rows=49, columns=512, depth=4608)
    assert times(few, device) > 4 * times(few._replace(shared=1.0), device)
    assert times(few._replace(rows=1e6), device) == pytest.approx(times(few._replace(shared=1.0), device), rel=0.01)


def test_only_three_by_three_in_float32_gains_from_winograds_transform() -> None:
    device = load_device("rtx3090")
    plain = Kernel("convolution", flops=1e12, rows=1e6, columns=512, depth=4608)
    gain = CONSTANTS.winograd_frac / CONSTANTS.matmul_frac
    assert times(plain, device) == pytest.approx(gain * times(plain._replace(window=9.0), device), rel=1e-3)
    assert times(plain, device, "tf32") == times(plain._replace(window=9.0), device, "tf32")


def test_grouped_convolution_without_a_tensor_kernel_is_slow_in_channels_last_only() -> None:
    device = load_device("rtx3090")
    grouped = Kernel("convolution", "float16", flops=1e12, rows=1e5, columns=24, depth=216, products=16)
    slow = times(grouped, device, "fp16", "channels_last")
    assert slow == pytest.approx(1e12 / (7.1e13 * CONSTANTS.direct_frac) * CONSTANTS.fp16_channels_last, rel=1e-3)
    assert slow > 4 * times(grouped, device, "fp16")
    assert slow > 4 * times(grouped._replace(products=32), device, "fp16", "channels_last")


def test_tensor_cores_pay_for_turning_contiguous_images_round() -> None:
    device = load_device("rtx3090")
    kernel = Kernel("convolution", "float16", flops=1e9, nbytes=1e8, layout_bytes=1e8, rows=1e5, columns=64, depth=576)
    assert times(kernel, device, "fp16") > 2 * times(kernel, device, "fp16", "channels_last")
    alike = kernel._replace(dtype="float32")
    assert times(alike, device) == times(alike, device, "float32", "channels_last")


def test_launch_overhead_of_the_device_file_is_taken() -> None:
    device = replace(load_device("rtx3090"), launch_overhead_s=1e-3)
    assert times(Kernel("elementwise", nbytes=4), device) == pytest.approx(1e-3, rel=1e-3)


def test_small_step_takes_the_hosts_time_for_each_kernel() -> None:
    found = estimate_speed(MNIST, load_device("h200"))
    assert found.host_bound
    assert found.step_time_s == found.kernel_count * CONSTANTS.host_dispatch_s > found.device_time_s
    assert "bound by the host" in found.basis


def test_large_step_takes_the_devices_time() -> None:
    found = estimate_speed(replace(RESNET, batch_size=256), load_device("t4"))
    assert not found.host_bound
    assert found.step_time_s == found.device_time_s > found.host_time_s
    assert found.samples_per_s == 256 / found.step_time_s


def test_breakdown_adds_up() -> None:
    found = estimate_speed(RESNET, load_device("rtx3090"))
    assert sum(seconds for _, seconds in found.class_times_s) == pytest.approx(found.device_time_s)
    assert sum(seconds for _, seconds in found.phase_times_s) == pytest.approx(found.device_time_s)
    assert {name for name, _ in found.class_times_s} == {
        "convolution",
        "normalisation",
        "elementwise",
        "reduction",
        "matmul",
        "optimizer",
    }
    phases = dict(found.phase_times_s)
    assert 1.5 * phases["forward"] < phases["backward"] < 3 * phases["forward"]


def test_basis_says_what_it_is_and_how_far_off() -> None:
    basis = estimate_speed(replace(RESNET, precision="fp16"), load_device("rtx3090")).basis
    assert "roofline" in basis
    assert "RTX 3090" in basis
    assert "median error" in basis
    assert "no step in float32" in estimate_speed(RESNET, load_device("rtx3090")).basis


# the optimizer


@pytest.mark.parametrize(("optimizer", "passes"), [("sgd", 3), ("sgd_momentum", 8), ("adam", 19), ("adam:fused", 7)])
def test_optimizer_is_counted_by_its_bytes(optimizer: str, passes: int) -> None:
    name, _, fused = optimizer.partition(":")
    choice = Choice.of(name, {"fused": True} if fused else {})
    columns = optimizer_columns(Choice("resnet18"), IMAGENET, choice, False)
    assert set(columns.kind) == {"optimizer"}
    assert columns.column("nbytes").sum() / (4 * 11_689_512) == pytest.approx(passes, rel=1e-3)


def test_foreach_launches_a_few_kernels_and_a_loop_one_for_each_parameter() -> None:
    foreach = optimizer_columns(Choice("resnet18"), IMAGENET, Choice("sgd"), False)
    loop = optimizer_columns(Choice("resnet18"), IMAGENET, Choice.of("sgd", {"foreach": False}), False)
    assert foreach.launches.sum() < 10
    assert loop.launches.sum() == 62


@pytest.mark.parametrize("name", ["adafactor", "asgd", "nadam", "rprop", "adadelta"])
def test_optimizer_that_reads_values_is_followed_all_the_same(name: str) -> None:
    assert (
        optimizer_columns(Choice("mlp"), ImageSpec(1, 28, 28, 10), Choice(name), False).column("nbytes").sum()
        > 101_770 * 4 * 3
    )


def test_gradient_scaler_looks_through_all_gradients() -> None:
    with_scaler = optimizer_columns(Choice("resnet18"), IMAGENET, Choice("sgd"), True).column("nbytes").sum()
    without = optimizer_columns(Choice("resnet18"), IMAGENET, Choice("sgd"), False).column("nbytes").sum()
    assert with_scaler - without == 2 * 4 * 11_689_512


# what is refused


def test_unknown_bandwidth_is_refused_and_named() -> None:
    with pytest.raises(Unsupported, match="memory_bandwidth_bytes_per_s"):
        estimate_speed(MNIST, replace(load_device("rtx3090"), memory_bandwidth_bytes_per_s=None))


def test_unknown_peak_rate_is_refused_and_named() -> None:
    with pytest.raises(Unsupported, match=r"t4.*peak_bf16_flop_per_s"):
        estimate_speed(replace(MNIST, precision="bf16"), load_device("t4"))
    with pytest.raises(Unsupported, match=r"t4.*peak_tf32_flop_per_s"):
        estimate_speed(replace(MNIST, precision="tf32"), load_device("t4"))


def test_cpu_is_refused() -> None:
    with pytest.raises(Unsupported, match="NVIDIA GPUs only"):
        estimate_speed(MNIST, load_device("cpu"))


def test_every_gpu_file_gives_a_time_in_float32() -> None:
    columns = case_columns(MNIST)
    for name in list_devices():
        device = load_device(name)
        if device.kind == "cuda":
            assert kernel_times_s(columns, device, "float32", "contiguous").sum() > 0


def test_columns_hold_every_number_of_a_kernel() -> None:
    columns = to_columns(
        [
            (
                "forward",
                "x",
                Kernel(
                    "matmul", flops=1.0, nbytes=2.0, layout_bytes=3.0, rows=4.0, columns=5.0, depth=6.0, products=7.0
                ),
            )
        ]
    )
    assert isinstance(columns, Columns)
    assert [columns.column(name)[0] for name in NUMBERS] == [1, 2, 3, 4, 5, 6, 7]
