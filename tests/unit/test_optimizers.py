"""The optimizers of the catalog: their settings are torch's, their state is counted to the byte, and adding one."""

from __future__ import annotations

import importlib.util
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import bench.catalog.optimizers
from bench import catalog
from bench.catalog.optimizers import rest
from bench.catalog.settling import settles_after, take_every_iteration
from bench.errors import BenchError, Unsupported
from tests.each import each

SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"foreach": True},
    {"foreach": False},
    {"fused": True},
    {"capturable": True},
    {"amsgrad": True},
    {"amsgrad": True, "fused": True},
    {"amsgrad": True, "capturable": True},
    {"momentum": 0.5},
    {"momentum": 0.0},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "fused": True},
    {"centered": True},
    {"centered": True, "momentum": 0.9},
    {"centered": True, "capturable": True},
    {"weight_decay": 0.1},
    {"lr": 0.5},
    {"maximize": True},
    {"decoupled_weight_decay": True},
    {"initial_accumulator_value": 0.1},
)
NOT_OFFERED = {
    "params",
    "differentiable",  # not of a step that is measured
    "decoupled_weight_decay",  # adam with it is adamw
    "ns_coefficients",
    "eps",
    "ns_steps",  # muon's, whose defaults are named constants
}
HOST_SCALARS = {
    "adagrad": 1,
    "adam": 1,
    "adamw": 1,
    "adamax": 1,
    "nadam": 2,
    "radam": 1,
    "rmsprop": 1,
    "rprop": 1,
    "adadelta": 1,
    "adafactor": 1,
}
MUON_HOST_SCALARS = 5
"""AdamW's, of the parameters that are no matrices."""
"""Scalars that torch keeps on the CPU for each parameter tensor, so that on the CPU they come on top."""


def small_model(device: str = "cpu") -> torch.nn.Module:
    """Convolution, norm and linear layer: parameters of one, two and four dimensions, none of them square."""
    torch.manual_seed(42)
    layers = (
        torch.nn.Conv2d(3, 8, (3, 5)),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 6 * 4, 5),
    )
    return torch.nn.Sequential(*layers).to(device)


SHAPES = [(8, 3, 3, 5), (8,), (8,), (8,), (5, 8 * 6 * 4), (5,)]
"""Of the small model's parameters."""


def refusal(name: str, settings: Mapping[str, Any], shapes: list[tuple[int, ...]] = SHAPES) -> str | None:
    refuse = catalog.optimizer(name).refuse_reason
    return refuse(shapes, settings) if refuse else None


def cases(without: str) -> list[tuple[str, dict[str, Any]]]:
    """Every optimizer that steps without a closure, with every group of settings that it takes and `without` is not in."""
    return [
        (name, settings)
        for name in catalog.names("optimizer")
        for settings in SETTINGS
        if set(settings) <= set(catalog.optimizer(name).settings) - {without}
        and refusal(name, {}) is None
        and not catalog.optimizer(name).takes_closure
        and refusal(name, settings) is None
    ]


def test_the_small_model_has_the_shapes_that_refusals_are_asked_about() -> None:
    assert [tuple(parameter.shape) for parameter in small_model().parameters()] == SHAPES


def build(name: str, model: torch.nn.Module, settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    return catalog.optimizer(name).build(list(model.parameters()), **settings)


def state_tensors(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [value for kept in optimizer.state.values() for value in kept.values() if isinstance(value, torch.Tensor)]


@each("name, settings", lambda: cases(without="capturable"))
def test_state_is_that_of_a_real_step(name: str, settings: dict[str, Any]) -> None:
    """Without capturable steps, which run on accelerators only; the next test holds their state."""
    model = small_model()
    optimizer = build(name, model, settings)
    torch.nn.functional.cross_entropy(model(torch.rand(4, 3, 8, 8)), torch.tensor([0, 1, 2, 3])).backward()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer.step()
    host_scalars = 0 if settings.get("fused") else HOST_SCALARS.get(name, 0) * len(SHAPES)
    if name == "muon":
        host_scalars = MUON_HOST_SCALARS
    counted = catalog.optimizer(name).state_bytes(SHAPES, 4, settings)
    assert counted + host_scalars * 4 == sum(tensor.nbytes for tensor in state_tensors(optimizer))
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@each("name, settings", lambda: cases(without="fused"))
def test_state_counted_is_what_lives_on_the_parameters_device(name: str, settings: dict[str, Any]) -> None:
    """The meta device plays the GPU: state is made before a step finds that it cannot go on there."""
    model = small_model("meta")
    optimizer = build(name, model, settings)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    try:
        optimizer.step()
    except (RuntimeError, AssertionError) as error:
        assert "capturable" in str(error) or "item()" in str(error)
    there = [tensor for tensor in state_tensors(optimizer) if tensor.device.type == "meta"]
    assert catalog.optimizer(name).state_bytes(SHAPES, 4, settings) == sum(tensor.nbytes for tensor in there)


def test_founding_optimizers_keep_none_one_and_two_copies() -> None:
    founding_mlp = [(128, 784), (128,), (10, 128), (10,)]
    kept = [catalog.optimizer(name).state_bytes(founding_mlp, 4, {}) for name in ("sgd", "sgd_momentum", "adam")]
    assert kept == [0, 407_080, 814_160]


def test_state_has_the_parameters_type() -> None:
    half = catalog.optimizer("adam").state_bytes([(10, 10)], 2, {})
    assert (half, catalog.optimizer("adam").state_bytes([(10, 10)], 2, {"fused": True})) == (400, 404)


@each("name", lambda: catalog.names("optimizer"))
def test_settings_and_defaults_are_torchs(name: str) -> None:
    entry = catalog.optimizer(name)
    optimizer = entry.build([torch.nn.Parameter(torch.zeros(2, 2))])
    theirs = inspect.signature(type(optimizer)).parameters
    assert set(entry.settings) <= set(theirs)
    assert set(theirs) - set(entry.settings) <= NOT_OFFERED
    for key, setting in entry.settings.items():
        if (name, key) != ("sgd_momentum", "momentum"):
            assert setting.default == theirs[key].default, key
            assert optimizer.defaults.get(key, setting.default) in (setting.default, optimizer.defaults.get("max_eval"))
        assert setting.check(setting.default) is None, key


def test_momentum_of_sgd_momentum_is_0_9_and_can_be_set() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    entry = catalog.optimizer("sgd_momentum")
    assert entry.settings["momentum"].default == 0.9
    assert [entry.build(parameters, **given).defaults["momentum"] for given in ({}, {"momentum": 0.5})] == [0.9, 0.5]


def test_every_optimizer_of_torch_is_listed_by_its_lower_case_name() -> None:
    classes = [item for item in vars(torch.optim).values() if inspect.isclass(item)]
    theirs = {item.__name__ for item in classes if issubclass(item, torch.optim.Optimizer)} - {"Optimizer"}
    listed = set(catalog.names("optimizer"))
    assert {name.replace("_", "") for name in listed - {"sgd_momentum"}} >= {name.lower() for name in theirs}
    assert {"sgd", "sgd_momentum", "adam", "adamw", "rmsprop", "adagrad", "adafactor"} <= listed
    assert {"adadelta", "adamax", "asgd", "lbfgs", "nadam", "radam", "rprop", "sparse_adam"} <= listed


def test_optimizers_are_listed_without_importing_torch() -> None:
    code = "import sys; from bench import catalog; catalog.names('optimizer'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_without_torch_the_rest_is_missing_and_a_warning_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="torch is not installed"):
        assert rest.load_entries() == ()


@pytest.mark.parametrize(
    ("name", "shapes", "reason"), [("sparse_adam", SHAPES, "sparse_adam takes sparse gradients only")]
)
def test_optimizer_that_cannot_train_here_is_refused(name: str, shapes: list[tuple[int, ...]], reason: str) -> None:
    assert reason in str(refusal(name, {}, shapes))


def test_lbfgs_keeps_what_is_counted_once_its_history_is_full_and_not_before() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 5))  # whose loss is convex
    settings = {"max_iter": 3, "history_size": 4, "lr": 0.01}
    optimizer, images = build("lbfgs", model, settings), torch.rand(4, 3, 8, 8)

    def evaluate() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2, 3]))
        loss.backward()
        return loss

    kept = []
    for _ in range(4):
        optimizer.step(evaluate)
        leaves = torch.utils._pytree.tree_leaves(list(optimizer.state.values()))
        kept.append(sum(leaf.nbytes for leaf in leaves if isinstance(leaf, torch.Tensor)))
    counted = catalog.optimizer("lbfgs").state_bytes([(5, 3 * 8 * 8), (5,)], 4, settings)
    assert kept[0] < kept[1] < counted == kept[2] == kept[3]
    assert settles_after(optimizer) == 3


def test_a_trace_of_lbfgs_takes_every_iteration_and_refuses_a_line_search() -> None:
    plain = build("lbfgs", small_model(), {})
    take_every_iteration(plain)
    assert plain.param_groups[0]["tolerance_change"] == 0
    searching = build("lbfgs", small_model(), {"line_search_fn": "strong_wolfe"})
    assert settles_after(searching) == 6  # its history grows alike, and it is measured
    with pytest.raises(Unsupported, match="line_search_fn=strong_wolfe evaluates the model as often as values ask for"):
        take_every_iteration(searching)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"history_size": 0}, "history_size of at least 1"),
        ({"max_iter": 0}, "lbfgs needs a max_iter and a history_size of at least 1"),
        ({"line_search_fn": "wolfe"}, 'line_search_fn "wolfe" is not one of torch'),
    ],
)
def test_lbfgs_refuses_settings_with_which_torch_fails_or_does_nothing(settings: dict[str, Any], words: str) -> None:
    assert words in str(refusal("lbfgs", settings))
    assert refusal("lbfgs", {"line_search_fn": "strong_wolfe", "history_size": 1}) is None


def test_muon_trains_the_matrices_and_adamw_the_rest() -> None:
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    model = small_model()
    optimizer = build("muon", model, {"momentum": 0.5})
    matrix = [*model.parameters()][4]
    torch.nn.functional.cross_entropy(model(torch.rand(4, 3, 8, 8)), torch.tensor([0, 1, 2, 3])).backward()
    optimizer.step()
    assert {parameter for parameter, kept in optimizer.state.items() if "momentum_buffer" in kept} == {matrix}
    assert {"exp_avg" in kept for parameter, kept in optimizer.state.items() if parameter is not matrix} == {True}
    assert len(optimizer.state) == len(SHAPES)


def test_muon_is_refused_where_there_is_no_matrix() -> None:
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    assert refusal("muon", {}, []) is None  # nothing is known of the model
    assert refusal("muon", {}, [(3,), (8, 3, 3, 3)]) == "muon trains matrices, and none of the 2 parameters is one"


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("adam", {"foreach": True, "fused": True}, "foreach and fused are two ways"),
        ("sgd", {"foreach": True, "fused": True}, "foreach and fused are two ways"),
        ("sgd", {"nesterov": True}, "nesterov needs a momentum above 0"),
        ("sgd_momentum", {"nesterov": True, "dampening": 0.1}, "nesterov needs a momentum above 0 and no dampening"),
    ],
)
def test_settings_that_torch_refuses_are_refused_before(name: str, settings: dict[str, Any], reason: str) -> None:
    assert reason in str(refusal(name, settings))
    with pytest.raises((ValueError, RuntimeError)):
        build(name, small_model(), settings)


def test_nesterov_with_momentum_is_not_refused() -> None:
    assert refusal("sgd_momentum", {"nesterov": True}) is None


@pytest.mark.parametrize(
    "text", ["adam:lr=-1", "adam:betas=[0.9,1.0]", "adam:fused=1", "adam:lr=true", "sgd:lr=nan", "rprop:etas=[0.5]"]
)
def test_setting_of_a_wrong_type_or_range_is_refused(text: str) -> None:
    with pytest.raises(BenchError, match="is not allowed"):
        catalog.parse_choice("optimizer", text)


def test_setting_equal_to_its_default_makes_no_other_case() -> None:
    assert catalog.parse_choice("optimizer", "adam:amsgrad=false,lr=0.001") == catalog.parse_choice("optimizer", "adam")


def forget_entries() -> None:
    for function in vars(catalog).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()


@pytest.fixture
def folder_of_optimizers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose files count as lying in `bench/catalog/optimizers`."""
    monkeypatch.setattr(bench.catalog.optimizers, "__path__", [*bench.catalog.optimizers.__path__, str(tmp_path)])
    forget_entries()
    yield tmp_path
    monkeypatch.undo()
    forget_entries()
    sys.modules.pop("bench.catalog.optimizers.sign", None)


def test_adding_an_optimizer_is_one_new_file(folder_of_optimizers: Path) -> None:
    assert "sign" not in catalog.names("optimizer")
    forget_entries()
    (folder_of_optimizers / "sign.py").write_text(
        textwrap.dedent('''\
        """Steps by the gradient's sign: Rprop with a fixed step."""

        from bench.catalog.entries import OptimizerEntry


        def build(parameters, *, lr: float = 1e-2):
            import torch

            return torch.optim.Rprop(parameters, lr=lr, etas=(0.999, 1.001), step_sizes=(lr, lr))


        ENTRIES = (OptimizerEntry("sign", build, "the gradient's sign"),)
        ''')
    )
    assert "sign" in catalog.names("optimizer")
    choice = catalog.parse_choice("optimizer", "sign:lr=0.5")
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, -0.1])
    catalog.optimizer(choice.name).build([parameter], **choice.options).step()
    assert parameter.tolist() == [-0.5, 0.5]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("adamax:lr=-1.0", "0.0 <= lr"),
        ("nadam:betas=[0.9, 1.0]", "0.0 <= betas[1] < 1.0"),
        ("radam:eps=-1e-8", "0.0 <= eps"),
        ("asgd:lambd=-1.0", "0.0 <= lambd"),
        ("rprop:etas=[2.0, 1.2]", "0.0 < etas[0] < 1.0 < etas[1]"),
        ("adadelta:rho=1.5", "0.0 <= rho <= 1.0"),
        ("nadam:lr=nan", "0.0 <= lr"),
    ],
)
def test_a_value_that_torchs_constructor_refuses_is_refused_where_it_is_read(text: str, rule: str) -> None:
    with pytest.raises(BenchError, match=re.escape(f"it must obey torch's rule {rule} (default")):
        catalog.parse_choice("optimizer", text)


def test_every_default_obeys_torchs_rules() -> None:
    for name, entry in catalog.entries("optimizer").items():
        for key, setting in entry.settings.items():
            assert setting.default is None or setting.check(setting.default) is None, (name, key)
