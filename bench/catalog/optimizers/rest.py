"""The rest of torch.optim by lower-case name, with the settings that the installed torch gives them.

Names, settings and defaults are read from torch's source with `ast`, so that listing them does not import torch. An
optimizer that a file of its own in this folder brings is left to that file.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import GenericAlias
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator

from bench.catalog.entries import OptimizerEntry, Setting
from bench.catalog.optimizer_state import Settings, Shapes, copies_bytes, refuse_both, scalars_bytes, step_on_device

if TYPE_CHECKING:
    import torch

_NO_SETTINGS = ("self", "params", "differentiable")
"""Parameters that are not settings; a differentiable step is for training through the optimizer, which no case does."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What an optimizer keeps for each parameter tensor."""

    copies: int  # tensors of the parameter's shape
    scalars: int = 0  # always on the parameter's device
    movable_scalars: int = 0  # there with `capturable` or `fused` only


KEPT: Mapping[str, Kept] = {
    "adadelta": Kept(2, movable_scalars=1),
    "adamax": Kept(2, movable_scalars=1),
    "asgd": Kept(1, scalars=3),
    "nadam": Kept(2, movable_scalars=2),
    "radam": Kept(2, movable_scalars=1),
    "rprop": Kept(2, movable_scalars=1),
}
"""State by optimizer; one that does not stand here has unknown state, not none."""

LBFGS_HISTORY = 100
"""Torch's default of `history_size`."""


def build(class_name: str, parameters: list[torch.nn.Parameter], **settings: Any) -> torch.optim.Optimizer:
    """Build torch's optimizer of this class; settings not given have torch's defaults."""
    import torch

    return getattr(torch.optim, class_name)(parameters, **settings)  # type: ignore[no-any-return]


def build_muon(parameters: list[torch.nn.Parameter], **settings: Any) -> torch.optim.Optimizer:
    """Build torch's Muon for the matrices and its AdamW, with AdamW's own defaults, for all other parameters.

    Muon takes matrices only; that the others go to AdamW is what the documentation of `torch.optim.Muon` says.
    """
    import torch

    muon = torch.optim.Muon([parameter for parameter in parameters if parameter.ndim == 2], **settings)
    others = [parameter for parameter in parameters if parameter.ndim != 2]
    return _in_turn(muon, torch.optim.AdamW(others)) if others else muon


def _in_turn(first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Two optimizers of different parameters as one."""
    import torch

    class InTurn(torch.optim.Optimizer):
        def __init__(self) -> None:
            super().__init__([*first.param_groups, *second.param_groups], {})
            self.state = second.state = first.state

        def step(self, closure: Any = None) -> Any:
            loss = first.step(closure)
            second.step()
            return loss

    return InTurn()


def state_bytes(kept: Kept, shapes: Shapes, element_bytes: int, settings: Settings) -> int:
    """Bytes of what is kept for each parameter."""
    scalars = kept.scalars + kept.movable_scalars * step_on_device(settings)
    return copies_bytes(kept.copies, shapes, element_bytes) + scalars_bytes(scalars, shapes)


def muon_state_bytes(shapes: Shapes, element_bytes: int, settings: Settings) -> int:
    """Muon's momentum of each matrix; both of AdamW's moments of all else."""
    matrices = [shape for shape in shapes if len(shape) == 2]
    others = [shape for shape in shapes if len(shape) != 2]
    return copies_bytes(1, matrices, element_bytes) + copies_bytes(2, others, element_bytes)


def lbfgs_state_bytes(shapes: Shapes, element_bytes: int, settings: Settings) -> int:
    """With a full history: two vectors and two numbers a pair, the direction, the last gradient, and a scale.

    Vectors are of all parameters at once. The history grows by a pair in each iteration until it has `history_size`.
    """
    pairs = int(settings.get("history_size", LBFGS_HISTORY))  # type: ignore[arg-type]
    return copies_bytes(2 * pairs + 2, shapes, element_bytes) + (2 * pairs + 1) * element_bytes


def _refuse_lbfgs(shapes: Shapes, settings: Settings) -> str | None:
    if any(int(settings.get(name, 1)) < 1 for name in ("max_iter", "history_size")):  # type: ignore[arg-type]
        return "lbfgs needs a max_iter and a history_size of at least 1"
    if settings.get("line_search_fn") not in (None, "strong_wolfe"):
        return f'lbfgs: line_search_fn "{settings["line_search_fn"]}" is not one of torch\'s; use strong_wolfe or none'
    return None


def _refuse_sparse_adam(shapes: Shapes, settings: Settings) -> str:
    return "sparse_adam takes sparse gradients only; the models here have dense ones; use adam"


def _refuse_muon(shapes: Shapes, settings: Settings) -> str | None:
    if not shapes or any(len(shape) == 2 for shape in shapes):
        return None
    return f"muon trains matrices, and none of the {len(shapes)} parameters is one"


_PARTICULARS: Mapping[str, Mapping[str, Any]] = {
    "lbfgs": {
        "summary": "torch's LBFGS; up to max_iter evaluations of the model a step, 2 x history_size copies of state",
        "state_bytes": lbfgs_state_bytes,
        "takes_closure": True,
        "assumption": "lbfgs is assumed to end each step at max_iter or max_eval, and to keep a pair of each iteration",
    },
    "muon": {
        "build": build_muon,
        "summary": "torch's Muon for matrices, AdamW for all other parameters",
        "state_bytes": muon_state_bytes,
    },
}
_REFUSE = {"lbfgs": _refuse_lbfgs, "muon": _refuse_muon, "sparse_adam": _refuse_sparse_adam}
_KIND_WORDS: Mapping[str, type] = {"bool": bool, "int": int, "float": float, "str": str}


def _snake(class_name: str) -> str:
    """`SparseAdam` -> `sparse_adam`, `NAdam` -> `nadam`, `LBFGS` -> `lbfgs`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", "_", class_name).lower()


def _setting(annotation: ast.expr | None, value: ast.expr) -> Setting | None:
    """The setting of one parameter, or `None` if its default or type is nothing a configuration can hold."""
    words = re.findall(r"\w+", ast.unparse(annotation)) if annotation else []
    named = [_KIND_WORDS[word] for word in words if word in _KIND_WORDS]
    try:
        default = ast.literal_eval(value)
    except ValueError:
        return None
    if not named:
        return None
    if isinstance(default, tuple):
        numbers = tuple(float(number) for number in default)
        return Setting(numbers, GenericAlias(tuple, (float,) * len(numbers)))
    if default is None:
        return Setting(None, named[0] | None)
    return Setting(named[0](default), named[0])


_OPPOSITES: Mapping[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
}
_PLAIN = (
    ast.BoolOp,
    ast.boolop,
    ast.UnaryOp,
    ast.unaryop,
    ast.Compare,
    ast.cmpop,
    ast.Name,
    ast.Load,
    ast.Constant,
    ast.Subscript,
    ast.List,
    ast.Tuple,
)


def _negated(test: ast.expr) -> ast.expr | None:
    """The condition that holds where `test` does not, as one would write it; `None` if it cannot be told."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return test.operand
    if isinstance(test, ast.BoolOp):
        parts = [_negated(part) for part in test.values]
        other: ast.boolop = ast.Or() if isinstance(test.op, ast.And) else ast.And()
        return None if None in parts else ast.BoolOp(other, [part for part in parts if part is not None])
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and type(test.ops[0]) in _OPPOSITES:
        return ast.Compare(test.left, [_OPPOSITES[type(test.ops[0])]()], test.comparators)
    return None


def _rules(start: ast.FunctionDef) -> dict[str, list[str]]:
    """The conditions that the constructor sets each parameter, as it writes them: `0.0 <= betas[0] < 1.0`.

    Taken are `if not CONDITION: raise ValueError(...)` and its like where they speak of one parameter alone, so that a
    setting that torch would refuse in every run is refused where it is read.
    """
    found: dict[str, list[str]] = {}
    for item in start.body:
        if not isinstance(item, ast.If) or item.orelse or not isinstance(item.body[0], ast.Raise):
            continue
        condition = _negated(item.test)
        names = {node.id for node in ast.walk(item.test) if isinstance(node, ast.Name)}
        if condition is not None and len(names) == 1 and all(isinstance(node, _PLAIN) for node in ast.walk(condition)):
            found.setdefault(names.pop(), []).append(ast.unparse(ast.fix_missing_locations(condition)))
    return found


def _obeys(name: str, rules: list[str]) -> Callable[[Any], Any]:
    """A check of a value by the conditions of `_rules`; they hold nothing but comparisons of torch's own source."""

    def check(value: Any) -> Any:
        for rule in rules:
            if value is not None and not eval(rule, {"__builtins__": {}}, {name: value}):
                raise ValueError(f"obey torch's rule {rule}")
        return value

    return check


def _settings(definition: ast.ClassDef) -> dict[str, Setting]:
    start = next(item for item in definition.body if isinstance(item, ast.FunctionDef) and item.name == "__init__")
    rules = _rules(start)
    given = start.args
    positional = [*given.posonlyargs, *given.args]
    offset = len(positional) - len(given.defaults)
    pairs: list[tuple[ast.arg, ast.expr | None]] = list(zip(positional[offset:], given.defaults, strict=True))
    pairs += zip(given.kwonlyargs, given.kw_defaults, strict=True)
    found = {
        parameter.arg: _setting(parameter.annotation, value)
        for parameter, value in pairs
        if value is not None and parameter.arg not in _NO_SETTINGS
    }
    return {
        name: replace(setting, kind=Annotated[setting.kind, AfterValidator(_obeys(name, rules[name]))])
        if name in rules
        else setting
        for name, setting in found.items()
        if setting is not None
    }


def _definitions(folder: Path) -> Iterator[ast.ClassDef]:
    """Every class of torch.optim that derives from `Optimizer`."""
    for path in sorted(folder.glob("*.py")):
        source = path.read_text(encoding="utf-8")
        for node in ast.parse(source).body if "(Optimizer)" in source else ():
            if isinstance(node, ast.ClassDef) and any(getattr(base, "id", None) == "Optimizer" for base in node.bases):
                yield node


def _entry(definition: ast.ClassDef) -> OptimizerEntry:
    name = _snake(definition.name)
    entry = OptimizerEntry(
        name,
        functools.partial(build, definition.name),
        f"torch's {definition.name}",
        functools.partial(state_bytes, KEPT[name]) if name in KEPT else None,
        _REFUSE.get(name, refuse_both),
        _settings(definition),
    )
    return replace(entry, **_PARTICULARS.get(name, {}))


def load_entries() -> tuple[OptimizerEntry, ...]:
    """One entry an optimizer of the torch installed; none, with a warning that says so, where it is not."""
    found = importlib.util.find_spec("torch")
    if found is None or not found.submodule_search_locations:
        warnings.warn("torch is not installed, so its other optimizers are not listed; pip install torch", stacklevel=2)
        return ()
    own = {path.stem for path in Path(__file__).parent.glob("*.py")}
    definitions = _definitions(Path(found.submodule_search_locations[0]) / "optim")
    return tuple(_entry(definition) for definition in definitions if _snake(definition.name) not in own)


ENTRIES = load_entries()
