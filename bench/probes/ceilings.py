"""What a device reaches: bandwidth of a copy, rates of products, the cost of a launch, cuDNN's workspaces.

Each figure is the best of several windows of at least `WINDOW_S`: other work on the machine makes a window slower and
never faster. Windows end with the device's synchronisation, so that a rate's two halves cover the same work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from bench.probes.host import available_memory_bytes, cpu_model, usable_cores
from bench.records import Precision

WINDOW_S = 0.05
WINDOWS = 5
MOST_S = 5.0
"""Of one figure, unless there is less time; a call that alone takes as long is measured once."""

COPY_BYTES = {"cuda": 1 << 30, "cpu": 256 << 20}
"""Of one copy's source, where an eighth of the memory is as much: far more than caches hold."""
SIDES = {"cuda": (2048, 4096, 8192), "cpu": (512, 1024, 2048)}
"""Of square products; the best rate counts."""
LAUNCHES = 400
"""Small kernels in a row: fewer than a stream's queue holds, so that the host does not wait for the device."""

Send = Callable[[dict[str, Any]], None]

CONVOLUTIONS = (
    # images (B, C, H, W), filters, window, stride, groups: layers of ResNet-50, ResNeXt-50 and MobileNetV2
    ((32, 3, 224, 224), 64, 7, 2, 1),
    ((32, 64, 56, 56), 64, 3, 1, 1),
    ((32, 256, 56, 56), 128, 1, 1, 1),
    ((32, 256, 14, 14), 256, 3, 1, 1),
    ((32, 512, 7, 7), 512, 3, 1, 1),
    ((32, 128, 56, 56), 128, 3, 1, 32),
    ((32, 96, 112, 112), 96, 3, 2, 96),
)


def measure_ceilings(kind: str, most_s: float = MOST_S, send: Send = lambda news: None) -> dict[str, Any]:
    """Measure the device that this process sees first.

    Args:
        kind: `cpu` or `cuda`.
        most_s: What one figure may take, about.
        send: Hears of each phase.

    Returns:
        `values` and `sources`, as for `bench.devices.render_device_toml`, of keys that could be measured; `precisions`,
        those that the device computes in; and `workspaces`: for each convolution, precision and way, the `bytes` that
        it took beside its arguments and results (empty on a CPU).
    """
    import torch

    made = f"measured: best of {WINDOWS} windows (torch {torch.__version__})"
    values: dict[str, Any] = {}
    send({"phase": "bandwidth"})
    values["reachable_bandwidth_bytes_per_s"] = _bandwidth(kind, most_s)
    precisions = _precisions(kind)
    for precision in precisions:
        send({"phase": f"products in {precision}"})
        values[f"reachable_{precision}_flop_per_s"] = _product_rate(kind, precision, most_s)
    send({"phase": "launches"})
    values["host_dispatch_s"] = _host_dispatch_s(kind)
    if kind == "cuda":
        values["launch_overhead_s"] = _launch_s(most_s)
    known = {key: value for key, value in values.items() if value and value > 0}
    sources = dict.fromkeys(known, made)
    if kind == "cpu":
        known |= {"gpu_name": cpu_model() or "CPU", "kind": "cpu", "multiprocessors": usable_cores()}
        sources["multiprocessors"] = "measured: cores that this process may use"
    send({"phase": "workspaces"})
    workspaces = list(_workspaces(precisions)) if kind == "cuda" else []
    return {"values": known, "sources": sources, "precisions": list(precisions), "workspaces": workspaces}


def _precisions(kind: str) -> tuple[Precision, ...]:
    """Those that the device has; on a CPU the one that its roofline is calibrated for."""
    import torch

    if kind == "cpu":
        return ("float32",)
    if torch.cuda.get_device_capability() >= (8, 0):
        return ("float32", "tf32", "bf16", "fp16")
    return ("float32", "fp16")


def _best_s(call: Callable[[], object], kind: str, most_s: float) -> float:
    """Seconds of one call: the least of several windows."""
    _window_s(call, kind, 1)  # loads what there is to load
    count, once_s = 1, _window_s(call, kind, 1)
    if once_s >= most_s:
        return once_s
    while (taken := _window_s(call, kind, count)) < WINDOW_S and count < 1 << 20:
        count = count * 2 if taken <= 0 else max(count + 1, min(count * 8, round(count * WINDOW_S / taken * 1.2)))
    windows = min(WINDOWS, max(1, int(most_s / max(taken, 1e-9))))
    return min(_window_s(call, kind, count) for _ in range(windows)) / count


def _window_s(call: Callable[[], object], kind: str, count: int) -> float:
    _synchronise(kind)
    started = time.perf_counter()
    for _ in range(count):
        call()
    _synchronise(kind)
    return time.perf_counter() - started


def _synchronise(kind: str) -> None:
    import torch

    if kind == "cuda":
        torch.cuda.synchronize()


def _bandwidth(kind: str, most_s: float) -> float:
    """Bytes per second of a copy, those read and those written."""
    import torch

    free = torch.cuda.mem_get_info()[0] if kind == "cuda" else available_memory_bytes()
    nbytes = max(1 << 20, min(COPY_BYTES[kind], free // 8))
    source, target = (torch.ones(nbytes // 4, device=kind) for _ in range(2))
    return 2.0 * nbytes / _best_s(lambda: target.copy_(source), kind, most_s)


_DTYPES = {"float32": "float32", "tf32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def _product_rate(kind: str, precision: Precision, most_s: float) -> float:
    """FLOP/s of the fastest of some square products."""
    import torch

    from bench.workload.rounding import rounded_for

    best = 0.0
    with rounded_for(precision):
        for side in SIDES[kind]:
            left, right = (torch.ones(side, side, device=kind, dtype=getattr(torch, _DTYPES[precision])) for _ in "ab")
            taken = _best_s(lambda left=left, right=right: left @ right, kind, most_s)  # type: ignore[misc]
            best = max(best, 2.0 * side**3 / taken)
            if taken > most_s / 16:  # the next takes eight times as long
                break
    return best


def _host_dispatch_s(kind: str) -> float:
    """Seconds of the host for one small operator; on a CPU, which computes it too, with its arithmetic."""
    import torch

    number = torch.zeros(1, device=kind)
    best = float("inf")
    for _ in range(WINDOWS + 1):
        _synchronise(kind)
        started = time.perf_counter()
        for _ in range(LAUNCHES):
            number.add_(1.0)
        best = min(best, time.perf_counter() - started)
    _synchronise(kind)
    return best / LAUNCHES


def _launch_s(most_s: float) -> float | None:
    """Seconds of the device for one small kernel whose launch is queued already; None if the host was too slow."""
    import torch

    event: Any = torch.cuda.Event
    number, square = torch.zeros(1, device="cuda"), torch.ones(4096, 4096, device="cuda")
    begin, end = event(enable_timing=True), event(enable_timing=True)
    hold_s = LAUNCHES * 40e-6
    products = max(1, min(500, round(hold_s / max(_best_s(lambda: square @ square, "cuda", most_s), 1e-6))))
    best: float | None = None
    for _ in range(WINDOWS):
        torch.cuda.synchronize()
        for _ in range(products):  # keeps the device busy while the small kernels queue up
            square @ square
        begin.record()
        for _ in range(LAUNCHES):
            number.add_(1.0)
        end.record()
        waited = not begin.query()  # the device reached the small kernels after the host had asked for all of them
        torch.cuda.synchronize()
        taken = begin.elapsed_time(end) / 1e3 / LAUNCHES
        if waited and taken > 0:
            best = taken if best is None else min(best, taken)
    return best


def _workspaces(precisions: tuple[Precision, ...]) -> Iterator[dict[str, Any]]:
    """What convolutions take beside arguments and results, each way; copies to another layout count too."""
    from bench.workload.rounding import rounded_for

    for precision in precisions:
        with rounded_for(precision):
            for layout in ("contiguous", "channels_last"):
                for convolution in CONVOLUTIONS:
                    yield from _of_convolution(convolution, precision, layout)


def _of_convolution(convolution: tuple[Any, ...], precision: Precision, layout: str) -> Iterator[dict[str, Any]]:
    import torch

    (batch, channels, height, width), filters, window, stride, groups = convolution
    kind: Any = {"device": "cuda", "dtype": getattr(torch, _DTYPES[precision]), "requires_grad": True}
    form: Any = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    try:
        images = torch.empty(batch, channels, height, width, **kind).to(memory_format=form)
        weight = torch.empty(filters, channels // groups, window, window, **kind).to(memory_format=form)
        place = (stride, window // 2)
        taken, output = _beside(
            lambda: torch.nn.functional.conv2d(images, weight, stride=place[0], padding=place[1], groups=groups)
        )
        gradient = torch.empty_like(output)
        back, _ = _beside(lambda: torch.autograd.grad(output, (images, weight), gradient, retain_graph=True))
    except RuntimeError:  # too large for this GPU, or no kernel: nothing is known
        return
    shape = {"images": [batch, channels, height, width], "filters": filters, "window": window, "stride": stride}
    for way, nbytes in (("forward", taken), ("backward", back)):
        yield {**shape, "groups": groups, "precision": precision, "memory_format": layout, "way": way, "bytes": nbytes}


def _beside(call: Callable[[], Any]) -> tuple[int, Any]:
    """The most bytes that a call held beside its results, and the results; after a first call, which loads kernels."""
    import torch

    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    result = call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated(), result
