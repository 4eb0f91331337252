"""A training step and inputs of a user's own, through the Python interface, the recording and the guard."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import bench
from bench.api import outline
from bench.catalog import ModelEntry
from bench.catalog.entries import InputSpec
from bench.errors import BenchError
from bench.records import stable_hash

INPUTS = ["int64[B,16]", "int64[B,16]"]


def small() -> torch.nn.Module:
    """A model of token ids `(B, T)`, with logits `(B, T, 50)`."""

    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.head = torch.nn.Embedding(50, 32), torch.nn.Linear(32, 50)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.head(torch.tanh(self.tokens(tokens)))

    return Small()


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[torch.Tensor, ...]) -> float:
    tokens, targets, *_ = batch
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def reads(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[torch.Tensor, ...]) -> None:
    loss = model(batch[0]).sum()
    if loss.item() > 1:
        loss = loss * 2
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("int64[B,128]", InputSpec("int64", (None, 128))),
        (" float32 [ B , 3, 32,32 ]", InputSpec("float32", (None, 3, 32, 32))),
        ("bool[]", InputSpec("bool", ())),
    ],
)
def test_an_input_is_a_type_and_a_shape(text: str, spec: InputSpec) -> None:
    assert InputSpec.parse(text) == spec


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("int46[B,2]", "Nearest: int64"),
        ("int64", "such as 'int64\\[B,128\\]'"),
        ("int64[B,-1]", "'-1' is not a size"),
        ("int64[N]", "'N' is not a size"),
        (3, "not a type and a shape"),
    ],
)
def test_an_input_that_is_none_is_refused_with_what_is_allowed(text: str, said: str) -> None:
    with pytest.raises(BenchError, match=said):
        ModelEntry("own", small, inputs=(text,), step=step)


def test_one_text_is_no_list_of_inputs() -> None:
    with pytest.raises(BenchError, match=r"inputs 'int64\[B\]': a list"):
        ModelEntry("own", small, inputs="int64[B]", step=step)  # type: ignore[arg-type]
    assert ModelEntry("own", small, inputs=["int64[B]"], step=step).inputs == ("int64[B]",)  # type: ignore[arg-type]


def test_inputs_that_the_usual_step_cannot_take_need_a_step() -> None:
    with pytest.raises(BenchError, match=r"step=\.\.\."):
        ModelEntry("own", small, inputs=("int64[B]",))


def test_a_language_models_own_step_is_estimated_at_several_batches() -> None:
    one, other = bench.estimate(
        small, step=step, inputs=INPUTS, optimizer=torch.optim.AdamW, batch_size=[8, 64], device="h100_sxm"
    )
    assert one.trace_batch_bytes == 2 * 8 * 16 * 8
    assert other.trace_batch_bytes == 2 * 64 * 16 * 8
    assert one.trace_optimizer_state_bytes == 2 * 4 * (50 * 32 + 32 * 50 + 50)
    assert one.estimated_samples_per_s
    assert one.formula_bytes is None and "models that take images" in (one.estimate_note or "")


def test_the_tensors_of_a_declared_batch_have_names() -> None:
    found = bench.timeline(small, step=step, inputs=[*INPUTS, "float32[B,4096]"], batch_size=8, device="h100_sxm")
    assert "input 2 (8, 4096) float32" in [tensor.label for tensor in found.tensors]


def test_two_inputs_and_a_loss_go_through_the_usual_step() -> None:
    def loss(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(output.flatten(0, 1), targets.flatten())

    found = bench.estimate(small, inputs=INPUTS, loss=loss, batch_size=8, precision="bf16", device="h100_sxm")
    assert found.trace_peak_allocated_bytes


def test_a_step_that_reads_values_is_refused_with_operator_and_line() -> None:
    with pytest.raises(BenchError, match=r"_local_scalar_dense in test_own_steps\.py:\d+"):
        outline(small, step=reads, inputs=INPUTS, batch_size=8)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"precision": "bf16"}, "precision=bf16: .*decides that itself"),
        ({"accumulation": 2}, "accumulation=2"),
        ({"dataset": "mnist"}, "in place of dataset"),
        ({"step": 3}, "step 3: a function"),
        ({"inputs": ["int64[B,x]"]}, "'x' is not a size"),
        ({"inputs": 5}, "inputs 5: a list of declarations"),
        ({"batch_size": [8, 16]}, "one whole number is needed"),
        ({"device": 3}, "device 3: a name"),
    ],
)
def test_what_a_step_of_ones_own_decides_itself_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(BenchError, match=said):
        outline(small, **{"step": step, "inputs": INPUTS, "batch_size": 8, **changes})


def test_an_optimizer_that_is_built_is_refused() -> None:
    with pytest.raises(BenchError, match=r"such as torch\.optim\.AdamW, not one that is built"):
        outline(small, step=step, inputs=INPUTS, batch_size=8, optimizer=torch.optim.SGD(small().parameters()))


def test_a_model_of_the_catalog_keeps_its_own_step() -> None:
    with pytest.raises(BenchError, match="step: goes with a model that is a callable"):
        bench.estimate("mlp", dataset="mnist", step=step)


def test_a_real_step_on_the_cpu_keeps_what_it_returned() -> None:
    from bench.workload.step import Workload

    model = small()
    workload = Workload(model, torch.optim.SGD(model.parameters()), torch.device("cpu"), own_step=step)
    batch = (torch.zeros(4, 16, dtype=torch.int64),) * 2
    workload.step(iter([batch]))
    assert workload.loss is None and isinstance(workload.kept[0], float)
    workload.own_step = lambda model, optimizer, batch: model(batch[0]).mean()
    workload.step(iter([batch]))
    assert isinstance(workload.loss, float)


def test_the_code_of_a_guarded_model_is_that_of_its_own_files() -> None:
    one = outline(small, step=step, inputs=INPUTS, batch_size=8)
    assert len(one.code) == 16
    assert one.environment["torch"] == torch.__version__.partition("+")[0]
    assert outline("mlp", dataset="mnist", batch_size=8).code == ""


def test_what_a_child_reads_is_found_by_imports_and_by_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import multiprocessing

    from bench.guard.tracing import Sources

    (tmp_path / "part_of_it.py").write_text("import os\n\nWIDTH = os.environ.setdefault('OWN_WIDTH', '3')\n")
    (tmp_path / "whole_of_it.py").write_text("import part_of_it\n\n\ndef build():\n    pass\n")
    (tmp_path / "widths.yaml").write_text("8")
    monkeypatch.syspath_prepend(str(tmp_path))
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def child() -> None:
        sources = Sources()
        import whole_of_it

        (tmp_path / "widths.yaml").read_text()
        names = [[path.name for path in found] for found in (sources.read()[0], sources.own(whole_of_it.build))]
        sender.send([*names, sources.variables])

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert receiver.poll(1)
    read, own, variables = receiver.recv()
    assert {"part_of_it.py", "whole_of_it.py", "widths.yaml"} <= {*read}
    assert {"part_of_it.py", "whole_of_it.py", "widths.yaml"} == {*own}
    assert variables == {"OWN_WIDTH": stable_hash(None)}  # as it was found, not as it was then set
    assert "whole_of_it" not in sys.modules
