"""Who made what in a recording, in processes of their own: the recording must not notice that modules are followed."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from bench.launchers import LocalLauncher, Outcome
from bench.records import Case, Choice

H200 = "h200"


def in_child(task: Any, argument: Any) -> dict[str, Any]:
    answer = LocalLauncher().run(task, argument, timeout_s=240)
    assert answer.outcome is Outcome.ANSWERED, answer.reason
    return answer.value


def compare_task(case: Case, send: Any) -> dict[str, Any]:
    """The recording with and without hooks on the modules, and what each does to the allocator."""
    from bench.devices import load_device
    from bench.estimators import record
    from bench.estimators.events import build_events, replay_trace
    from bench.estimators.kept import machine_of
    from bench.estimators.memory_settings import MemorySettings
    from bench.estimators.recording import Call

    machine = machine_of(load_device(H200), MemorySettings("2.15.0"))
    followed = record.record_case(case, machine)
    record.modules_followed = lambda: contextlib.nullcontext(record.Modules())
    plain = record.record_case(case, machine)
    peaks = [replay_trace(build_events(made, machine)) for made in (plain, followed)]
    calls = [entry for entry in followed.entries if isinstance(entry, Call)]
    unnamed = [entry._replace(module=None) if isinstance(entry, Call) else entry for entry in followed.entries]
    return {
        "entries": plain.entries == unnamed,
        "roles": plain.roles == followed.roles,
        "peaks": [[peak.allocated_bytes, peak.reserved_bytes, peak.requested_bytes] for peak in peaks],
        "named": sum(call.module is not None for call in calls if call.phase in (2, 3)),
        "calls": sum(call.phase in (2, 3) for call in calls),
    }


@pytest.mark.parametrize(
    ("model", "optimizer", "precision"),
    [
        ("resnet18", Choice("adam"), "float32"),
        ("mlp", Choice("adam"), "float32"),
        pytest.param("densenet121", Choice("sgd"), "bf16", marks=pytest.mark.slow),
        pytest.param("vit_b_16", Choice("adamw"), "bf16", marks=pytest.mark.slow),
    ],
)
def test_following_modules_changes_nothing_of_a_recording(model: str, optimizer: Choice, precision: Any) -> None:
    size = 0 if model == "vit_b_16" else 32
    found = in_child(compare_task, Case(Choice("imagenet"), Choice(model), optimizer, 8, precision, image_size=size))
    assert found["calls"] > 20
    assert found["named"] > 0.5 * found["calls"]  # the loss belongs to no module
    assert found["entries"]
    assert found["roles"]
    assert found["peaks"][0] == found["peaks"][1]


def tiny_task(argument: Any, send: Any) -> dict[str, Any]:
    """Who made what in a small model with a functional residual: `path operator` of every call with results."""
    import gc

    import torch

    from bench.estimators.record import record_training
    from bench.estimators.recording import calls_of

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.gelu(images + self.conv(images))

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = Block()
            self.stages = torch.nn.Sequential(Block(), torch.nn.Flatten())
            self.head = torch.nn.Linear(3 * 8 * 8, 5)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(torch.sigmoid(self.stages(self.stem(images))))

    class Training:
        def __init__(self, device: torch.device) -> None:
            self.model = Model().to(device)
            self.optimizer = torch.optim.Adam(self.model.parameters(), foreach=False)
            self.batch = torch.empty(4, 3, 8, 8, device=device), torch.empty(4, device=device, dtype=torch.int64)

        def step(self) -> None:
            self.optimizer.zero_grad(set_to_none=True)
            images, labels = self.batch
            torch.nn.functional.cross_entropy(self.model(images), labels).backward()
            self.optimizer.step()

    recording = record_training(Training, steps=2)
    gc.collect()
    return {
        "made": [
            [call.phase, str(call.module), call.operator.removeprefix("aten::")]
            for call in calls_of(recording, 2)
            if call.outputs
        ],
        "held": sorted(
            [recording.roles[number], *recording.holders[number]]
            for number in recording.holders
            if number in recording.roles
        ),
        "hooks": len(torch.nn.modules.module._global_forward_hooks)
        + len(torch.nn.modules.module._global_forward_pre_hooks),
        "backward": torch.autograd.backward.__module__,
    }


@pytest.fixture(scope="module")
def tiny() -> dict[str, Any]:
    return in_child(tiny_task, None)


def test_modules_parameters_gradients_and_states_have_their_names(tiny: dict[str, Any]) -> None:
    made = [tuple(item) for item in tiny["made"]]
    forward = [(path, operator.partition(".")[0]) for phase, path, operator in made if phase == 2]
    assert forward[:3] == [("stem.conv", "convolution"), ("stem", "add"), ("stem", "gelu")]
    assert forward[3:6] == [("stages.0.conv", "convolution"), ("stages.0", "add"), ("stages.0", "gelu")]
    assert ("Model", "sigmoid") in forward
    assert ("head", "addmm") in forward
    assert [path for path, operator in forward if operator in ("_log_softmax", "nll_loss_forward")] == ["None", "None"]
    backward = [(path, operator.partition(".")[0]) for phase, path, operator in made if phase == 3]
    for expected in (
        ("head", "mm"),
        ("Model", "sigmoid_backward"),
        ("stages.0", "gelu_backward"),
        ("stem", "gelu_backward"),
        ("stages.0.conv", "convolution_backward"),
        ("stem.conv", "convolution_backward"),
        ("None", "_log_softmax_backward_data"),
    ):
        assert expected in backward, backward
    held = {tuple(item) for item in tiny["held"]}
    for expected_held in (
        ("parameters", "stem.conv.weight", ""),
        ("gradients", "stages.0.conv.bias", ""),
        ("optimizer_state", "head.weight", "exp_avg"),
        ("optimizer_state", "head.weight", "exp_avg_sq"),
    ):
        assert expected_held in held, sorted(held)


def test_no_hook_stays_behind(tiny: dict[str, Any]) -> None:
    assert tiny["hooks"] == 0
    assert tiny["backward"] == "torch.autograd"


def ways_task(argument: Any, send: Any) -> dict[str, list[int]]:
    """How often each step's optimizer calls an operator that it takes up later."""
    from bench import catalog
    from bench.devices import load_device
    from bench.estimators.kept import machine_of
    from bench.estimators.memory_settings import MemorySettings
    from bench.estimators.record import record_case
    from bench.estimators.recording import Phase, StepEnd, calls_of

    found = {}
    for optimizer, operator in argument:
        case = Case(Choice("mnist"), Choice("mlp"), catalog.parse_choice("optimizer", optimizer), 8)
        recording = record_case(case, machine_of(load_device(H200), MemorySettings("2.15.0")))
        steps = [entry.step for entry in recording.entries if isinstance(entry, StepEnd)]
        found[optimizer] = [
            sum(call.name == operator and call.phase is Phase.OPTIMIZER for call in calls_of(recording, step))
            for step in steps[1:]
        ]
    return found


def test_steps_are_recorded_until_the_optimizer_has_taken_its_last_way() -> None:
    """Four parameters; ASGD reads from the device whether to average, and counts its steps there."""
    asked = [
        ("adam:foreach=false", "sqrt"),
        ("radam:foreach=false", "sqrt"),
        ("radam:betas=[0.9, 0.5],foreach=false", "sqrt"),
        ("radam", "_foreach_sqrt"),
        ("asgd:foreach=false", "sub"),
        ("asgd:foreach=false,t0=2.0", "sub"),
    ]
    assert in_child(ways_task, asked) == {
        "adam:foreach=false": [4] * 3,
        "radam:foreach=false": [0] * 5 + [4] * 2,
        "radam:betas=[0.9, 0.5],foreach=false": [0] * 3,
        "radam": [1] * 3,
        "asgd:foreach=false": [0] * 3,
        "asgd:foreach=false,t0=2.0": [0] * 4 + [4] * 2,
    }


def sums_task(argument: Any, send: Any) -> list[str]:
    """How the backward adds up the gradients of a tensor that is used twice."""
    import torch

    from bench.estimators.record import record_training
    from bench.estimators.recording import Phase, calls_of

    class Residuals(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(4))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                images = images + layer(images).relu()
            return images

    class Training:
        def __init__(self, device: torch.device) -> None:
            self.model = Residuals().to(device)
            self.optimizer = torch.optim.SGD(self.model.parameters())
            self.batch = (torch.empty(4, 8, device=device),)

        def step(self) -> None:
            self.optimizer.zero_grad(set_to_none=True)
            self.model(self.batch[0]).square().sum().backward()
            self.optimizer.step()

    calls = calls_of(record_training(Training), 3)
    return [call.name for call in calls if call.phase is Phase.BACKWARD and call.name in ("add", "add_")]


def test_gradients_are_added_up_in_place_where_nothing_else_holds_them() -> None:
    """Whatever looks at a tensor on the way must not leave a handle on its storage."""
    assert in_child(sums_task, None) == ["add_"] * 3
