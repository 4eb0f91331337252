"""A precision or a switch that something overrules is said to be so, by reading it back."""

from __future__ import annotations

import functools
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import Unsupported
from bench.plan import image_spec
from bench.probes import in_force
from bench.probes.backends import cpu
from bench.probes.in_force import PRECISION_FLAG, SWITCH_FLAG, InForce, read_in_force
from bench.records import Case, Choice, Precision, Protocol
from bench.records.variables import cublas_workspaces

if TYPE_CHECKING:
    from bench.workload import Workload

CASE = Case(Choice("mnist"), Choice("mlp"), Choice("sgd"), 8)
PROTOCOL = Protocol()
VARIABLES = (
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
    "OMP_THREAD_LIMIT",
    "CUBLAS_WORKSPACE_CONFIG",
)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def workload(case: Case = CASE) -> Workload:
    from bench.workload import build_workload

    return build_workload(case, image_spec(case.dataset, case.image_size), PROTOCOL, torch.device("cpu"))


def read(case: Case = CASE, protocol: Protocol = PROTOCOL, graphs: int | None = None) -> InForce:
    from bench.workload import numeric_modes

    with numeric_modes(case, protocol):
        return read_in_force(case, protocol, workload(case), graphs)


def play_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], *, hip: str | None = None) -> None:
    """A card of this compute capability, as torch describes it."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A Card")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: hip or capability >= (8, 0))
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: hip is None and capability >= (8, 0), raising=False)
    monkeypatch.setattr(torch.version, "hip", hip)


HOPPER, AMPERE, TURING, VOLTA, PASCAL, MAXWELL = (9, 0), (8, 6), (7, 5), (7, 0), (6, 0), (5, 2)


@pytest.mark.parametrize(
    ("capability", "precision", "override", "found", "told"),
    [
        (HOPPER, "tf32", None, "tf32", None),
        (HOPPER, "float32", None, "float32", None),
        (HOPPER, "float32", "0", "float32", None),
        (HOPPER, "tf32", "0", "float32", "NVIDIA_TF32_OVERRIDE=0"),
        (HOPPER, "tf32", " 0 ", "float32", "NVIDIA_TF32_OVERRIDE=0"),
        (HOPPER, "tf32", "1", "tf32", None),
        (AMPERE, "float32", "1", None, "NVIDIA_TF32_OVERRIDE=1"),
        (AMPERE, "bf16", "0", "bf16", None),
        (TURING, "tf32", None, "float32", "A Card (compute capability 7.5) has no TF32"),
        (TURING, "float32", "1", "float32", None),
        (TURING, "bf16", None, "bf16, emulated", "has no bf16 arithmetic"),
        (TURING, "fp16", None, "fp16", None),
        (VOLTA, "bf16", None, "bf16, emulated", "has no bf16 arithmetic"),
        (PASCAL, "tf32", None, "float32", "has no TF32"),
        (PASCAL, "fp16", None, "fp16", None),
        (MAXWELL, "fp16", None, "fp16, emulated", "has no fp16 arithmetic"),
    ],
)
def test_a_precision_is_what_the_card_and_the_variables_leave_of_it(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    precision: Precision,
    override: str | None,
    found: str | None,
    told: str | None,
) -> None:
    from bench.workload import numeric_modes

    play_gpu(monkeypatch, capability)
    environment = {} if override is None else {"NVIDIA_TF32_OVERRIDE": override}
    with numeric_modes(replace(CASE, precision=precision), PROTOCOL):
        precision_found, why = in_force.precision_on("cuda", precision, environment)
    assert precision_found == found
    assert (why is None) if told is None else (why is not None and told in why)


def test_a_switch_that_torch_does_not_report_as_it_was_set_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.workload import numeric_modes

    play_gpu(monkeypatch, HOPPER)
    with numeric_modes(replace(CASE, precision="tf32"), PROTOCOL):
        torch.backends.cudnn.allow_tf32 = False
        found, why = in_force.precision_on("cuda", "tf32", {})
    assert found is None
    assert why == (
        "code of the model or of a library set ieee in convolutions, ieee in recurrent layers "
        "(torch.backends.*.fp32_precision or allow_tf32)"
    )


def mix(name: str) -> None:
    """What code of a model may set: a switch of one kind, or of both."""
    backends = cast(Any, torch.backends)
    if name in ("old", "both"):
        backends.cuda.matmul.allow_tf32 = True
    if name == "half":
        torch.set_float32_matmul_precision("medium")
    if name in ("new", "both", "all"):
        backends.cudnn.conv.fp32_precision = "tf32"
    if name == "all":
        backends.fp32_precision = "tf32"
        backends.cuda.matmul.fp32_precision = backends.cudnn.rnn.fp32_precision = "tf32"


@pytest.mark.parametrize(
    ("name", "kind", "found", "told"),
    [
        ("old", "cuda", None, "tf32 in matrix products"),
        ("new", "cuda", None, "tf32 in convolutions"),
        ("both", "cuda", None, "tf32 in matrix products, tf32 in convolutions"),
        ("all", "cuda", "tf32", "tf32 in matrix products, tf32 in convolutions, tf32 in recurrent layers"),
        ("half", "cpu", None, "bf16 in matrix products"),
        ("old", "cpu", "float32", None),
    ],
)
def test_switches_of_both_kinds_are_read_undone_and_set_again(
    monkeypatch: pytest.MonkeyPatch, name: str, kind: str, found: str | None, told: str | None
) -> None:
    from bench.workload import numeric_modes
    from bench.workload.rounding import read_rounding

    if not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("this torch has no such switches")
    play_gpu(monkeypatch, HOPPER)
    on = functools.partial(in_force.precision_on, kind)
    before = read_rounding()
    try:
        with numeric_modes(CASE, PROTOCOL):
            mix(name)
            precision, why = on("float32", {})
            assert (precision, why is None) == (found, told is None)
            assert told is None or (why is not None and f"set {told} (" in why)
            with numeric_modes(replace(CASE, precision="tf32"), PROTOCOL):
                assert in_force.precision_on("cuda", "tf32", {}) == ("tf32", None)
                assert torch.backends.cudnn.allow_tf32  # code that reads the older switches finds the same
            with numeric_modes(CASE, PROTOCOL):
                assert on("float32", {}) == ("float32", None)
                assert not torch.backends.cudnn.allow_tf32
                assert not torch.backends.cuda.matmul.allow_tf32
                assert torch.get_float32_matmul_precision() == "highest"
    finally:
        cast(Any, torch.backends).fp32_precision = "none"
    assert read_rounding() == before


@pytest.mark.parametrize("name", ["ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"])
@pytest.mark.parametrize(("mode", "strict"), [("BF16", False), ("any", False), ("STRICT", True), ("", True)])
def test_float32_on_a_cpu_that_may_round_is_told(
    monkeypatch: pytest.MonkeyPatch, name: str, mode: str, strict: bool
) -> None:
    monkeypatch.setenv(name, mode)
    found = read()
    assert found.flags == (() if strict else (PRECISION_FLAG,))
    assert (found.precision, name in str(found.fields["not_in_force"])) == (
        ("float32", False) if strict else (None, True)
    )


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ({"avx2"}, "bf16, emulated"),
        ({"avx512_bf16"}, "bf16"),
        ({"amx_bf16"}, "bf16"),
        ({"bf16"}, "bf16"),
        (set(), None),
    ],
)
def test_a_cpu_without_instructions_for_a_precision_is_disclosed_and_not_flagged(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], found: str | None
) -> None:
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset(flags))
    assert read(replace(CASE, precision="bf16")) == InForce(found)


@pytest.mark.parametrize(
    ("protocol", "variables", "told"),
    [
        (Protocol(compiled=True), {"TORCHDYNAMO_DISABLE": "1"}, "produced no graph (TORCHDYNAMO_DISABLE is set)"),
        (Protocol(compiled=True), {}, "produced no graph"),
        (Protocol(threads=4096), {}, "threads: 4096 requested, but torch uses"),
        (Protocol(threads=2), {"OMP_THREAD_LIMIT": "1"}, "threads: 2 requested, but torch uses 1"),
    ],
)
def test_a_switch_that_did_nothing_is_flagged(
    monkeypatch: pytest.MonkeyPatch, protocol: Protocol, variables: dict[str, str], told: str
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = read(protocol=protocol, graphs=0)
    assert found.flags == (SWITCH_FLAG,)
    assert told in str(found.fields["not_in_force"])


def test_switches_that_are_in_force_are_not_flagged() -> None:
    protocol = Protocol(compiled=True, deterministic=True, cudnn_benchmark=True, threads=torch.get_num_threads())
    assert read(protocol=protocol, graphs=1).flags == ()


def test_weights_that_stay_in_another_layout_are_told() -> None:
    from bench.workload import numeric_modes

    case = Case(Choice("cifar10"), Choice("resnet18"), Choice("sgd"), 8, memory_format="channels_last")
    built = workload(case)
    with numeric_modes(case, PROTOCOL):
        assert read_in_force(case, PROTOCOL, built).flags == ()
        built.model.to(memory_format=torch.contiguous_format)
        assert read_in_force(case, PROTOCOL, built).flags == (SWITCH_FLAG,)


def modes() -> tuple[object, ...]:
    backends = torch.backends
    return (
        backends.cuda.matmul.allow_tf32,
        backends.cudnn.allow_tf32,
        backends.cudnn.benchmark,
        backends.cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16", "fp16"])
@given(benchmark=st.booleans(), deterministic=st.booleans())
def test_every_switch_is_in_force_within_and_as_before_behind(
    precision: Precision, benchmark: bool, deterministic: bool
) -> None:
    from bench.workload import numeric_modes

    before = modes()
    protocol = Protocol(cudnn_benchmark=benchmark, deterministic=deterministic)
    tf32 = precision == "tf32"
    with numeric_modes(replace(CASE, precision=precision), protocol):
        workspaces = ":4096:8" if deterministic else None
        assert modes() == (tf32, tf32, benchmark, deterministic, deterministic, True, workspaces)
        assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert modes() == before


@pytest.mark.parametrize("given_value", [None, "", ":0:0", ":8:2", ":4096:8", ":16:8", "4096:8"])
def test_a_deterministic_run_has_workspaces_with_which_cublas_is(given_value: str | None) -> None:
    environment = {} if given_value is None else {"CUBLAS_WORKSPACE_CONFIG": given_value}
    kept = given_value if given_value in (":4096:8", ":16:8") else ":4096:8"
    assert cublas_workspaces(environment, deterministic=True) == kept
    assert cublas_workspaces(environment, deterministic=False) == given_value


def test_an_operator_without_a_deterministic_form_is_named() -> None:
    from bench.workload import numeric_modes

    def run() -> None:
        torch.zeros(4).put_(torch.tensor([0]), torch.tensor([1.0]))

    with numeric_modes(CASE, PROTOCOL):
        run()
    with (
        pytest.raises(Unsupported, match="deterministic is on, but torch has no deterministic form of put_; turn"),
        numeric_modes(CASE, Protocol(deterministic=True)),
    ):
        run()
    assert not torch.are_deterministic_algorithms_enabled()


def test_another_fault_of_a_deterministic_run_stays_what_it_is() -> None:
    from bench.workload import numeric_modes

    with pytest.raises(RuntimeError, match="cannot be multiplied"), numeric_modes(CASE, Protocol(deterministic=True)):
        torch.zeros(2, 3) @ torch.zeros(2, 3)


def test_deterministic_runs_have_keys_of_their_own_and_no_other_run_has_a_new_one() -> None:
    """The keys are those of version 9b563e3."""
    assert Protocol().key == "fbc4623570822c49"
    assert Protocol(deterministic=True).key != "4dfadbdc3edd0504"
