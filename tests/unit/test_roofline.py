"""The roofline: kernels counted exactly, and times that follow what bounds them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from bench.devices import PRECISIONS, Device, list_devices, load_device
from bench.errors import Unsupported
from bench.estimators.kept import machine_of, recording_of
from bench.estimators.memory_settings import settings_in_force
from bench.estimators.recording import Call, calls_of
from bench.estimators.roofline import (
    CONSTANTS,
    Kernel,
    SpeedEstimate,
    count_flops,
    estimate_speed,
    form_of,
    kernel_time_s,
    kernels_of,
    least_time_s,
    list_kernels,
    rates_of,
    speed_interval,
    time_s,
    touched_bytes,
)
from bench.estimators.tensors import Spec
from bench.records import Case, Choice, ImageSpec

COLOUR = ImageSpec(3, 32, 32, 10)
MNIST = Case(Choice("mnist"), Choice("mlp"), Choice("sgd"), 64)
RESNET = Case(Choice("imagenet"), Choice("resnet50"), Choice("sgd_momentum"), 64)
MACHINE = machine_of(load_device("h200"), settings_in_force())
STEP = 2
Calls = list[Call]


def record(module: torch.nn.Module, batch: int = 4, narrow: torch.dtype | None = None) -> Calls:
    """The calls of a step that trains a module on colour images."""

    from bench.estimators.record import record_training
    from bench.workload.step import Workload

    class Training(Workload):
        batch: tuple[torch.Tensor, torch.Tensor]

        def step(self, *_: object) -> None:
            super().step(itertools.repeat(self.batch))

    def build(device: torch.device) -> Training:
        model = module.to(device).train()
        made = Training(model, torch.optim.SGD(model.parameters()), device, narrow)
        made.batch = (
            torch.empty(batch, *COLOUR.shape, device=device),
            torch.empty(batch, dtype=torch.int64, device=device),
        )
        return made

    return list(calls_of(record_training(build, STEP), STEP))


def record_model(name: str, batch: int, dataset: str = "imagenet", **axes: object) -> Calls:
    from bench.estimators.record import record_case

    case = Case(Choice(dataset), Choice(name), Choice("sgd"), batch, **axes)  # type: ignore[arg-type]
    return list(calls_of(record_case(case, MACHINE, steps=STEP), STEP))


def speed(case: Case, device: Device) -> SpeedEstimate:
    return estimate_speed(recording_of(case, MACHINE, shared=True), case, device)


def flops(calls: Calls, phase: str) -> float:
    return sum(kernel.flops for call in calls if call.phase.name.lower() == phase for kernel in list_kernels(call))


def kernels_named(calls: Calls, operator: str) -> list[Kernel]:
    return [kernel for call in calls if call.name == operator for kernel in list_kernels(call)]


def optimizer_kernels(optimizer: Choice, precision: str = "float32", model: str = "resnet18") -> list[Kernel]:
    case = Case(Choice("imagenet"), Choice(model), optimizer, 16, precision)  # type: ignore[arg-type]
    return [kernel for phase, kernel in kernels_of(recording_of(case, MACHINE)) if phase == "optimizer"]


def total(number: str, kernels: list[Kernel]) -> float:
    return sum(getattr(kernel, number) for kernel in kernels)


def times(kernel: Kernel, device: Device, precision: str = "float32") -> float:
    return kernel_time_s(kernel, device, precision)  # type: ignore[arg-type]


# what is counted


def test_flops_of_a_linear_layer_are_twice_its_weights_a_sample() -> None:
    recorded = record(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10)))
    assert flops(recorded, "forward") == 2 * 4 * 3072 * 10
    assert flops(recorded, "backward") == 2 * 4 * 3072 * 10  # no gradient of the images is asked for


def test_flops_and_bytes_of_a_convolution_are_exact() -> None:
    recorded = record(
        torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), torch.nn.Flatten(), torch.nn.Linear(8 * 256, 10)
        )
    )
    (kernel,) = kernels_named(recorded, "convolution")
    assert kernel.flops == 2 * 4 * 16 * 16 * 8 * 3 * 9
    assert kernel.nbytes == 4 * (4 * 3 * 32 * 32 + 8 * 3 * 9 + 4 * 8 * 16 * 16)
    assert (kernel.rows, kernel.columns, kernel.depth) == (4 * 256, 8, 27)


def test_each_gradient_of_a_grouped_convolution_takes_the_flops_of_its_forward() -> None:
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 1),
        torch.nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
    )
    forward = [kernel for kernel in kernels_named(record(layers), "convolution") if kernel.flops][1]
    backward = [kernel for kernel in kernels_named(record(layers), "convolution_backward") if kernel.products == 4]
    assert forward.flops == 2 * 4 * 32 * 32 * 8 * 2 * 9
    assert [kernel.flops for kernel in backward] == [forward.flops, forward.flops]


def test_convolution_of_one_channel_a_group_is_depthwise() -> None:
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3, groups=3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(6, 10)
    )
    assert {kernel.kind for kernel in kernels_named(record(layers), "convolution") if kernel.flops} == {"depthwise"}


def test_relu_in_place_reads_and_writes_once_and_its_gradient_reads_two() -> None:
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 1), torch.nn.ReLU(inplace=True), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    recorded, image = record(layers), 4 * 4 * 8 * 32 * 32
    assert [kernel.nbytes for kernel in kernels_named(recorded, "relu_")] == [2 * image]
    assert [kernel.nbytes for kernel in kernels_named(recorded, "threshold_backward")] == [3 * image]


def test_views_launch_nothing() -> None:
    recorded = record(
        torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Unflatten(1, (3, 1024)), torch.nn.Flatten(), torch.nn.Linear(3072, 10)
        )
    )
    assert not {"view", "t", "detach", "_unsafe_view"} & {call.name for call in recorded if list_kernels(call)}


def test_resnet50_takes_4_1_billion_multiplications_a_sample_forward_and_twice_that_backward() -> None:
    recorded = record_model("resnet50", 16)
    forward, backward = flops(recorded, "forward") / 16, flops(recorded, "backward") / 16
    assert forward == pytest.approx(2 * 4.089e9, rel=1e-3)
    first = 2 * 112 * 112 * 64 * 3 * 49  # the images get no gradient
    assert backward == 2 * forward - first


def test_flops_are_those_of_torchs_own_counter() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from bench.estimators.layers import build_on_meta

    module = build_on_meta(Choice("vgg11"), ImageSpec(3, 224, 224, 1000))
    with FlopCounterMode(display=False) as counter:
        module(torch.empty(4, 3, 224, 224, device="meta"))
    assert flops(record_model("vgg11", 4), "forward") == counter.get_total_flops()


def test_expanded_tensor_counts_once_in_memory() -> None:
    assert touched_bytes(Spec("float32", (4, 5), (0, 1))) == 4 * 5
    assert touched_bytes(Spec("float32", (5, 4), (1, 5))) == 4 * 4 * 5


def test_gradient_of_a_slice_is_zeros_everywhere_and_a_copy_of_the_slice() -> None:
    class Half(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3072, 20)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.layer(images.flatten(1))[:, :10]

    backward = [call for call in record(Half()) if call.phase.name == "BACKWARD"]
    written = [kernels_named(backward, name)[0].nbytes for name in ("zero_", "copy_")]
    assert written == [4 * 4 * 20, 2 * 4 * 4 * 10]


# autocast


def test_autocast_narrows_products_and_widens_softmax_and_norms() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(
                torch.nn.Flatten(), torch.nn.Linear(3072, 10), torch.nn.LayerNorm(10), torch.nn.Softmax(1)
            )

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.layers(images)

    recorded = record(Model(), narrow=torch.float16)
    assert {kernel.dtype for kernel in kernels_named(recorded, "addmm")} == {"float16"}
    assert {
        kernel.dtype
        for name in ("native_layer_norm", "_softmax", "_log_softmax")
        for kernel in kernels_named(recorded, name)
    } == {"float32"}
    assert {kernel.dtype for kernel in kernels_named(recorded, "mm")} == {"float16"}


def test_autocast_casts_a_weight_once_however_often_it_is_used() -> None:
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3072, 3072, bias=False)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.layer(self.layer(images.flatten(1)))

    recorded = record(Twice(), narrow=torch.bfloat16)
    of_weight = [
        call.arguments[0].dtype for call in recorded if call.name == "copy_" and call.arguments[0].shape == (3072, 3072)
    ]
    assert of_weight == ["bfloat16", "float32"]  # there, and its gradient back


@pytest.mark.parametrize(("precision", "kernel"), [("float32", "efficient"), ("bf16", "cudnn")])
def test_attention_is_one_kernel_forward_and_one_backward(precision: str, kernel: str) -> None:
    recorded = record_model("vit_b_16", 8, precision=precision)
    (forward, *others) = kernels_named(recorded, f"_scaled_dot_product_{kernel}_attention")
    assert len(others) == 11
    dtype = {"float32": "float32", "bf16": "bfloat16"}[precision]
    assert (forward.kind, forward.dtype, forward.flops) == ("attention", dtype, 8 * 12 * 4 * 197 * 197 * 64)
    backward = kernels_named(recorded, f"_scaled_dot_product_{kernel}_attention_backward")
    assert [one.flops for one in backward] == [2.5 * forward.flops] * 12
    assert {one.dtype for name in ("mm", "addmm") for one in kernels_named(recorded, name)} == {dtype}


# the batch size


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "swin_t"])
def test_two_recordings_serve_every_batch_size(name: str) -> None:
    from bench.estimators.record import record_case

    case = Case(Choice("imagenet"), Choice(name), Choice("adam"), 7, "fp16")
    assert kernels_of(recording_of(case, MACHINE, shared=True)) == kernels_of(record_case(case, MACHINE))


def test_step_takes_longer_the_larger_the_batch_and_samples_come_no_slower() -> None:
    device = load_device("rtx3090")
    found = [speed(replace(RESNET, batch_size=batch), device) for batch in (2, 8, 32, 128, 512)]
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


def test_least_time_is_that_of_the_rated_peaks_without_launches() -> None:
    device = load_device("a100_80gb")
    product = Kernel("matmul", "bfloat16", flops=3.12e14, nbytes=1e9, rows=1e4, columns=1e4, depth=1e5)
    copied = Kernel("elementwise", "bfloat16", nbytes=2.03904e12, launches=1000)
    both = [("forward", product), ("optimizer", copied)]
    assert least_time_s(both, device, "bf16") == pytest.approx(2.0)
    assert count_flops(both) == 3.12e14
    for lacking in ("memory_bandwidth_bytes_per_s", "peak_bf16_flop_per_s"):
        with pytest.raises(Unsupported, match=f"{lacking} is unknown"):
            least_time_s(both, replace(device, **{lacking: None}), "bf16")


def test_estimate_is_never_below_the_least_time_and_counts_what_the_kernels_do() -> None:
    made, kernels = speed(RESNET, load_device("h200")), kernels_of(recording_of(RESNET, MACHINE, shared=True))
    assert made.flops == count_flops(kernels) == pytest.approx(64 * 3 * 2 * 4.09e9, rel=0.02)  # torchvision: 4.09 GMAC
    assert 0 < made.least_time_s == least_time_s(kernels, load_device("h200"), "float32") < made.device_time_s


def test_large_product_follows_the_peak_rate_of_its_type() -> None:
    device = load_device("a100_80gb")
    wide = Kernel("matmul", "float32", flops=2e13, nbytes=1e8, rows=1e4, columns=1e4, depth=1e5)
    narrow = wide._replace(dtype="bfloat16")
    reached = CONSTANTS.full_rate_frac
    assert times(wide, device) == pytest.approx(times(narrow, device, "bf16") * reached * 312 / 19.5, rel=0.01)
    assert times(wide, device, "tf32") < times(wide, device) / 4
    assert times(wide, replace(device, peak_float32_flop_per_s=1.95e13 / 2)) == pytest.approx(
        2 * times(wide, device), rel=1e-3
    )


def test_tensor_cores_of_geforce_reach_more_of_their_halved_rate() -> None:
    """An RTX A6000 has 2.2 times the rated tensor rate of an RTX 3090, and gets less out of it."""
    wide = Kernel("matmul", "float16", flops=2e13, rows=1e4, columns=1e4, depth=1e5)
    full, halved = load_device("rtx_a6000"), load_device("rtx3090")
    assert full.peak_fp16_flop_per_s and halved.peak_fp16_flop_per_s
    rated = full.peak_fp16_flop_per_s / halved.peak_fp16_flop_per_s
    gain = times(wide, halved, "fp16") / times(wide, full, "fp16")
    assert gain == pytest.approx(rated * CONSTANTS.full_rate_frac, rel=0.01)


def test_without_tensor_cores_16_bits_are_computed_as_float32() -> None:
    device = load_device("gtx1080ti")
    wide = Kernel("matmul", flops=2e13, rows=1e4, columns=1e4, depth=1e5)
    assert times(wide._replace(dtype="float16"), device, "fp16") == pytest.approx(
        CONSTANTS.early_halves * times(wide, device), rel=0.01
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


def test_only_float32_without_tensor_cores_gains_from_winograds_transform() -> None:
    device = load_device("rtx3090")
    plain = Kernel("convolution", flops=1e12, rows=1e6, columns=512, depth=4608)
    fast = plain._replace(winograd=True)
    assert times(plain, device) == pytest.approx(CONSTANTS.winograd_gain * times(fast, device), rel=1e-3)
    assert times(plain, device, "tf32") == times(fast, device, "tf32")


@pytest.mark.parametrize(
    ("window", "stride", "groups", "expected"), [(3, 1, 1, True), (1, 1, 1, False), (3, 2, 1, False), (3, 1, 2, False)]
)
def test_winograds_transform_is_for_filters_at_every_pixel(
    window: int, stride: int, groups: int, expected: bool
) -> None:
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 1),
        torch.nn.Conv2d(8, 8, window, stride=stride, groups=groups, bias=False),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
    )
    forward = [kernel for kernel in kernels_named(record(layers), "convolution") if kernel.flops][1]
    assert forward.winograd is expected


def test_grouped_convolution_reaches_less_of_the_peak() -> None:
    device = load_device("rtx3090")
    plain = Kernel("convolution", "float16", flops=1e12, rows=1e5, columns=64, depth=576)
    assert times(plain._replace(products=16), device, "fp16") > 1.5 * times(plain, device, "fp16")


def test_tensor_cores_pay_for_turning_contiguous_images_round() -> None:
    device = load_device("rtx3090")
    pixels = Kernel("convolution", "float16", flops=1e9, nbytes=1e8, layout_bytes=1e8, rows=1e5, columns=64, depth=576)
    planes = pixels._replace(planes=True)
    assert times(planes, device, "fp16") > 1.2 * times(pixels, device, "fp16")
    assert times(planes._replace(dtype="float32"), device) == times(pixels._replace(dtype="float32"), device)


@pytest.mark.parametrize(("memory_format", "planes"), [("contiguous", True), ("channels_last", False)])
def test_layout_of_images_is_read_off_their_strides(memory_format: str, planes: bool) -> None:
    recorded = record_model("resnet18", 4, memory_format=memory_format)
    kernels = [kernel for call in recorded for kernel in list_kernels(call)]
    assert {kernel.planes for kernel in kernels if kernel.batch or kernel.kind == "convolution"} == {planes}


def test_batch_norm_of_planes_is_bound_by_multiprocessors_where_memory_is_fast() -> None:
    """What B200 has over H100 in bandwidth, 2.3 times, does not reach such kernels; those of pixels get most of it."""
    hopper, blackwell = load_device("h100_sxm"), load_device("b200")
    pixels = Kernel("normalisation", "float16", nbytes=1e9, batch=True)
    planes = pixels._replace(planes=True)
    assert times(planes, hopper) < 1.4 * times(planes, blackwell)
    assert times(pixels, hopper) > 1.6 * times(pixels, blackwell)


def test_gradients_of_depthwise_convolutions_take_many_times_their_forward() -> None:
    device = load_device("rtx3090")
    forward = Kernel("depthwise", flops=1e12, rows=1e6, columns=1, depth=9, products=512)
    assert times(forward._replace(backward=True), device) == pytest.approx(
        CONSTANTS.depthwise_backward * times(forward, device), rel=1e-3
    )


def test_ecc_beside_the_data_takes_its_share_of_the_bandwidth() -> None:
    device = load_device("t4")
    kernel = Kernel("elementwise", nbytes=1e9)
    assert device.memory_ecc_frac
    without = times(kernel, replace(device, memory_ecc_frac=None)) - CONSTANTS.launch_s
    assert times(kernel, device) - CONSTANTS.launch_s == pytest.approx(without / device.memory_ecc_frac)


def test_arrays_of_kernels_are_timed_as_each_of_them() -> None:
    from tools.fit_roofline import columns_of

    device = load_device("rtx3090")
    kernels = [
        kernel for _, kernel in kernels_of(recording_of(replace(RESNET, precision="fp16"), MACHINE, shared=True))
    ]
    for form in {form_of(kernel, device, "fp16") for kernel in kernels}:
        some = [kernel for kernel in kernels if form_of(kernel, device, "fp16") == form]
        rates = [rates_of(kernel, device, "fp16") for kernel in some]
        at_once = time_s(form, columns_of(some), columns_of(rates), CONSTANTS)
        assert list(at_once) == pytest.approx([times(kernel, device, "fp16") for kernel in some])


def test_launch_overhead_of_the_device_file_is_taken() -> None:
    device = replace(load_device("rtx3090"), launch_overhead_s=1e-3)
    assert times(Kernel("elementwise", nbytes=4), device) == pytest.approx(1e-3, rel=1e-3)


def test_small_step_takes_the_hosts_time_for_each_kernel() -> None:
    found = speed(MNIST, load_device("h200"))
    assert found.host_bound
    assert found.step_time_s == found.kernel_count * CONSTANTS.host_dispatch_s > found.device_time_s
    assert "limited by the host" in found.basis


def test_large_step_takes_the_devices_time() -> None:
    found = speed(replace(RESNET, batch_size=256), load_device("t4"))
    assert not found.host_bound
    assert found.step_time_s == found.device_time_s > found.host_time_s
    assert found.samples_per_s == 256 / found.step_time_s


def test_breakdown_adds_up() -> None:
    found = speed(RESNET, load_device("rtx3090"))
    assert sum(seconds for _, seconds in found.class_times_s) == pytest.approx(found.device_time_s)
    assert sum(seconds for _, seconds in found.phase_times_s) == pytest.approx(found.device_time_s)
    assert {name for name, _ in found.class_times_s} == {
        "convolution",
        "normalisation",
        "pooling",
        "elementwise",
        "reduction",
        "matmul",
        "optimizer",
    }
    phases = dict(found.phase_times_s)
    assert 1.3 * phases["forward"] < phases["backward"] < 3 * phases["forward"]


def test_basis_says_what_it_is_and_how_far_off() -> None:
    ampere, unseen = load_device("rtx3090"), load_device("b200")
    assert "no card of its compute capability" not in speed(RESNET, ampere).basis
    basis = speed(replace(RESNET, precision="fp16"), unseen).basis
    assert "roofline" in basis and "31 GPUs" in basis and "median error" in basis
    assert "no card of its compute capability" in basis


# the optimizer


@pytest.mark.parametrize(("optimizer", "passes"), [("sgd", 3), ("sgd_momentum", 8), ("adam", 19), ("adam:fused", 7)])
def test_optimizer_is_counted_by_its_bytes(optimizer: str, passes: int) -> None:
    name, _, fused = optimizer.partition(":")
    kernels = optimizer_kernels(Choice.of(name, {"fused": True} if fused else {}))
    assert {kernel.kind for kernel in kernels} == {"optimizer"}
    assert total("nbytes", kernels) / (4 * 11_689_512) == pytest.approx(passes, rel=1e-3)


def test_foreach_launches_a_few_kernels_and_a_loop_one_for_each_parameter() -> None:
    foreach = optimizer_kernels(Choice("sgd"))
    loop = optimizer_kernels(Choice.of("sgd", {"foreach": False}))
    assert total("launches", foreach) < 10
    assert total("launches", loop) == 62


@pytest.mark.parametrize("name", ["adafactor", "asgd", "nadam", "rprop", "adadelta"])
def test_optimizer_that_reads_values_is_followed_all_the_same(name: str) -> None:
    assert total("nbytes", optimizer_kernels(Choice(name), model="mlp")) > 101_770 * 4 * 3


def test_gradient_scaler_looks_through_all_gradients() -> None:
    with_scaler = total("nbytes", optimizer_kernels(Choice("sgd"), "fp16"))
    without = total("nbytes", optimizer_kernels(Choice("sgd")))
    assert with_scaler - without == pytest.approx(2 * 4 * 11_689_512, abs=100)


# what is refused


def test_unknown_bandwidth_is_refused_and_named() -> None:
    with pytest.raises(Unsupported, match="memory_bandwidth_bytes_per_s"):
        speed(MNIST, replace(load_device("rtx3090"), memory_bandwidth_bytes_per_s=None))


def test_unknown_peak_rate_is_refused_and_named() -> None:
    with pytest.raises(Unsupported, match=r"t4.*peak_bf16_flop_per_s"):
        speed(replace(MNIST, precision="bf16"), load_device("t4"))
    with pytest.raises(Unsupported, match=r"t4.*peak_tf32_flop_per_s"):
        speed(replace(MNIST, precision="tf32"), load_device("t4"))


def test_cpu_is_refused() -> None:
    with pytest.raises(Unsupported, match="NVIDIA GPUs only"):
        speed(MNIST, load_device("cpu"))


def test_every_gpu_file_gives_a_time_in_float32() -> None:
    kernels = kernels_of(recording_of(MNIST, MACHINE))
    for name in list_devices():
        device = load_device(name)
        if device.vendor == "nvidia":
            assert all(kernel_time_s(kernel, device, "float32") > 0 for _, kernel in kernels)


# its interval


def test_interval_is_around_the_estimate_and_wider_where_no_card_was_measured() -> None:
    ampere = load_device("rtx3090")
    for precision in PRECISIONS:
        low, high = speed_interval(100.0, ampere, precision)  # type: ignore[arg-type]
        assert 0 < low < 100 < high
        wider = speed_interval(100.0, replace(ampere, compute_capability=(10, 0)), precision)  # type: ignore[arg-type]
        assert wider == pytest.approx((low**2 / 100, high**2 / 100))
        assert speed_interval(200.0, ampere, precision) == pytest.approx((2 * low, 2 * high))  # type: ignore[arg-type]


def test_estimate_has_the_interval_of_its_precision_or_of_hosts() -> None:
    device = load_device("rtx3090")
    for case, host_bound in ((RESNET, False), (MNIST, True)):
        found = speed(case, device)
        assert found.host_bound is host_bound
        ends = speed_interval(found.samples_per_s, device, case.precision, host_bound=host_bound)
        assert (found.samples_per_s_low, found.samples_per_s_high) == ends


# cards


def test_cards_are_ordered_for_resnet50_as_they_were_measured() -> None:
    """lambda's and NVIDIA's throughputs: H200 and H100 over A100, A100 over RTX 3090; B200 leads and RTX 4090 lies between."""
    case = replace(RESNET, precision="fp16", batch_size=256)
    rates = [
        speed(case, load_device(name)).samples_per_s for name in ("b200", "h200", "h100_sxm", "a100_80gb", "rtx3090")
    ]
    assert rates == sorted(rates, reverse=True)
    ada = speed(case, load_device("rtx4090")).samples_per_s
    assert rates[-1] < ada < rates[2]
