"""The trace against real steps on the CPU, with real values and real memory."""

from __future__ import annotations

from bench import catalog
from bench.records import Case, Choice
from tools.accuracy.cases import family_of
from tools.accuracy.children import Children, Work, code_hash
from tools.accuracy.compare import HERE, versions
from tools.accuracy.page import Goal, Part, share, table

OPTIMIZERS = ("sgd", "sgd_momentum", "adam", "adamw", "rmsprop", "adagrad")
SIZES = {"inception_v3": 96, "maxvit_t": 224}
BATCH = 2
MODELS = (
    "mlp",
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_0",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
    "vgg11_bn",
    "vit_b_32",
    "wide_resnet50_2",
)
_CODE = (
    "tests/oracle/cpu_profile.py",
    "tools/accuracy/cpu_child.py",
    "bench/estimators/fake_cuda/*.py",
    "bench/estimators/record*.py",
    "bench/workload/*.py",
    "bench/catalog/*/*.py",
)
EXPLANATION = """
The very step runs on the CPU, with real values, under torch's profiler with its memory events, and is traced as well.
From both comes the account of what results hold, from birth to death; the highest of each of three steps and what is
alive between them are compared. Set aside are: scratch that is made and freed within one operator (and the temporaries
that the trace adds for CUDA's kernels); optimizers' step counts and numbers on their way into an operator, which lie on
the CPU in a run on a GPU too. The trace is made to choose as torch does on the CPU in three composite operators: batch
norm (torch's own kernel, not cuDNN's), dropout (noise in the input's type, not a mask), attention (the CPU's flash
kernel). All else is compared as it is. Optimizers go parameter by parameter, as they do on the CPU.
"""


def cpu_part(children: Children, models: tuple[str, ...] = MODELS) -> Part:
    """One case a model, with optimizers in turn."""
    part = Part("Against a real run on the CPU")
    part.say(EXPLANATION.strip())
    cases = [_case(model, OPTIMIZERS[index % len(OPTIMIZERS)]) for index, model in enumerate(models)]
    work = Work("real CPU run", HERE / "cpu_child.py", key=("cpu", *versions().values(), code_hash(*_CODE)))
    answers = children.ask(work, [case.axes for case in cases])
    rows: list[list[str]] = []
    equal = scored = 0
    for case, answer in zip(cases, answers, strict=True):
        words = [str(case), family_of(case.model.name)]
        if "failed" in answer:
            rows.append([*words, "", answer["failed"][:120]])
            continue
        run, trace = answer["run"], answer["trace"]
        pairs = [*zip(run["peaks"], trace["peaks"], strict=True), *zip(run["alive"], trace["alive"], strict=True)]
        difference = max((b - a for a, b in pairs), key=abs)
        scored += 1
        equal += difference == 0
        rows.append([*words, f"{max(run['peaks']):,}", f"{difference:+,}" if difference else "0"])
    part.lines += [*table(["case", "family", "peak of the run, B", "largest difference, B"], rows), ""]
    part.goals.append(
        Goal(
            "real CPU run, operators' scratch set aside",
            "0 B on every model",
            f"0 B on {share(equal, len(cases))}",
            equal == scored == len(cases) if cases else None,
        )
    )
    return part


def _case(model: str, optimizer: str) -> Case:
    chosen = catalog.parse_choice("optimizer", f"{optimizer}:foreach=false")
    if model == "mlp":
        return Case(Choice("mnist"), Choice(model), chosen, 64)
    return Case(Choice("imagenet"), Choice(model), chosen, BATCH, image_size=SIZES.get(model, 64))
