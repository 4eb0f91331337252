"""Fit the constants of the roofline again and say how well it holds: `python -m tools.fit_roofline FOLDER`.

The folder holds the files that `tools/throughputs.py` names. Prints the constants, their errors in the sample, and the
errors on each GPU, each generation of GPUs and each family of models that was left out of the fit. Takes minutes, more
where the steps have to be recorded first; `--shipped` prints the errors of the constants that are shipped, in seconds.

Least squares of logarithms of times, with less weight on rows far off (`soft_l1`) and a weak pull of each constant
towards its start. Rows of one card weigh less the more there are, so that the card of most rows does not decide.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from scipy.optimize import least_squares
from scipy.stats import spearmanr

from bench.estimators.roofline import (
    CONSTANTS,
    Constants,
    Form,
    Kernel,
    Rates,
    form_of,
    rates_of,
    speed_interval,
    time_s,
)
from tools.throughputs import Step, load_forward, load_gpus, load_timm

REFERENCE = "rtx3090"
"""Whose inference is fitted; that of the other card is predicted."""

FIXED = ("attention_frac", "launch_s", "memory_frac")
"""Known from elsewhere; NeuSight's elementwise operators reach 0.85 to 0.9 of the bandwidth of V100 and A100."""

START = Constants(
    normalisation_frac=0.6,
    reduction_frac=0.8,
    pooling_frac=0.5,
    plane_gather=3.0,
    pixel_gather=20.0,
    layout_passes=0.8,
    layout_gather=20.0,
    convolution_frac=1.1,
    convolution_columns=20.0,
    convolution_tiles=0.5,
    winograd_gain=2.0,
    grouped_frac=0.5,
    grouped_columns=50.0,
    depthwise_frac=0.5,
    depthwise_pixels=1.3,
    depthwise_backward=12.0,
    matmul_frac=1.1,
    product_depth=20.0,
    early_attention_frac=0.17,
    early_halves=1.13,
    full_rate_frac=0.8,
    host_dispatch_s=15e-6,
)
"""Where the search begins, and where constants stay on which no row depends."""

TIGHT = {
    **dict.fromkeys(("normalisation_frac", "matmul_frac", "host_dispatch_s", "full_rate_frac"), 0.5),
    "layout_passes": 1.0,
}
"""Pulls of single constants that are stronger than the others'."""

PULL = 0.15
"""Of the logarithm of a constant towards its start, where a row's logarithm counts 1."""

SPREAD = 0.1
"""Of the logarithm of a row's time: what is further off counts less than its square."""

TIMM_WEIGHT, FORWARD_WEIGHT = 0.2, 0.03
"""Of a row, where the only row of a card counts 1."""


@dataclass(frozen=True)
class Packed:
    """Steps as arrays, for times of all of them at once.

    Attributes:
        steps: In order.
        groups: For each form the kernels, what bounds them, how often each is launched, and its step.
        launches: Of each step.
    """

    steps: tuple[Step, ...]
    groups: tuple[tuple[Form, Kernel, Rates, np.ndarray, np.ndarray], ...]
    launches: np.ndarray

    def times(self, constants: Constants) -> np.ndarray:
        """Seconds of each step."""
        device = np.zeros(len(self.steps))
        for form, kernels, rates, counts, places in self.groups:
            device += np.bincount(places, counts * time_s(form, kernels, rates, constants), len(self.steps))
        host = self.launches * self._of(lambda step: constants.host_dispatch_s if step.host_s is None else step.host_s)
        return np.maximum(device, host) * self._of(lambda step: step.factor) + self._of(lambda step: step.extra_s)

    def _of(self, value: Callable[[Step], float]) -> np.ndarray:
        return np.array([value(step) for step in self.steps])

    @property
    def measured(self) -> np.ndarray:
        """Seconds of each step."""
        return self._of(lambda step: step.seconds)


def pack(steps: Sequence[Step]) -> Packed:
    """The steps with their kernels grouped by form."""
    found: dict[Form, list[tuple[Kernel, Rates, int, int]]] = defaultdict(list)
    for place, step in enumerate(steps):
        for kernel, count in step.kernels.items():
            form = form_of(kernel, step.device, step.precision)
            found[form].append((kernel, rates_of(kernel, step.device, step.precision), count, place))
    groups = []
    for form, items in found.items():
        kernels, rates, counts, places = zip(*items, strict=True)
        groups.append((form, columns_of(kernels), columns_of(rates), np.array(counts), np.array(places)))
    launches = [sum(kernel.launches * count for kernel, count in step.kernels.items()) for step in steps]
    return Packed(tuple(steps), tuple(groups), np.array(launches))


def columns_of(rows: Sequence[Any]) -> Any:
    """Named tuples of numbers as one of arrays; words are left as they are."""
    return type(rows[0])(
        *(values if isinstance(values[0], str) else np.array(values) for values in zip(*rows, strict=True))
    )


def weights(steps: Sequence[Step]) -> np.ndarray:
    """Of each row; their mean is 1."""
    rows = [step.card for step in steps if not _is_timm(step)]
    found = np.array(
        [
            FORWARD_WEIGHT if step.forward_only else TIMM_WEIGHT if _is_timm(step) else rows.count(step.card) ** -0.5
            for step in steps
        ]
    )
    return found / found.mean()


def _is_timm(step: Step) -> bool:
    return step.source == "timm"


def fit(steps: Sequence[Step], start: Constants = START, evaluations: int = 25) -> Constants:
    """The constants that agree best with the steps.

    Args:
        steps: Measured.
        start: Where the search begins; the constants are pulled towards `START` all the same.
        evaluations: Most steps of the search.
    """
    packed, measured = pack(steps), np.log([step.seconds for step in steps])
    share = np.sqrt(weights(steps))
    names = [item.name for item in fields(Constants) if item.name not in FIXED]
    centre = np.log([getattr(START, name) for name in names])
    pulls = np.array([TIGHT.get(name, PULL) for name in names])

    def with_values(values: np.ndarray) -> Constants:
        return replace(START, **dict(zip(names, map(float, np.exp(values)), strict=True)))

    def residuals(values: np.ndarray) -> np.ndarray:
        errors = np.log(packed.times(with_values(values))) - measured
        return np.concatenate([errors * share, (values - centre) * pulls])

    first = np.log([getattr(start, name) for name in names])
    found = least_squares(residuals, first, loss="soft_l1", f_scale=SPREAD, diff_step=1e-3, max_nfev=evaluations)
    return with_values(found.x)


def leave_out(
    steps: Sequence[Step], group: Callable[[Step], str], of: Callable[[Step], bool], fitted: Constants
) -> np.ndarray:
    """Seconds of the steps `of` which groups are left out, each from constants fitted without its group.

    All steps of a group are left out, also those that `of` does not name. NaN for steps that were not asked for.
    """
    times = np.full(len(steps), np.nan)
    for name in sorted({group(step) for step in steps if of(step)}):
        held = [place for place, step in enumerate(steps) if group(step) == name]
        without = fit([step for step in steps if group(step) != name], fitted, evaluations=6)
        asked = [place for place in held if of(steps[place])]
        times[asked] = pack([steps[place] for place in asked]).times(without)
    return times


def errors_of(steps: Sequence[Step], times: np.ndarray) -> np.ndarray:
    """Of samples per second: (estimate - measured) / measured."""
    return np.array([step.seconds for step in steps]) / times - 1


def validate(folder: Path, *, shipped: bool = False) -> dict[str, Any]:
    """Errors of samples per second in the sample and, unless `shipped`, left out, as numbers for JSON.

    Returns:
        `constants` (their text); `errors`, `pairs` and `intervals`, lists of rows; `worst`, the group of the largest
        median of each way of leaving out; `held`, the share of measurements that the shipped interval holds.
    """
    gpus, timm, forward = load_gpus(folder), load_timm(folder), load_forward(folder)
    known = [step for step in forward if step.device.name == REFERENCE]
    new = [step for step in forward if step.device.name != REFERENCE]
    steps = [*gpus, *timm, *known]
    constants = CONSTANTS if shipped else fit(steps)
    rows = []
    for name, some in (("many GPUs", gpus), ("timm, RTX 3090", timm), ("forward, RTX 3090", known)):
        rows.append(_score(f"{name}, in the sample", some, pack(some).times(constants)))
    rows.append(_score(f"forward, {new[0].card} from RTX 3090", new, pack(new).times(constants)))
    found: dict[str, Any] = {"constants": str(constants), "errors": rows, "pairs": [], "intervals": [], "worst": {}}
    found["held"] = {}
    for name, group, of in () if shipped else WAYS:
        asked = [step for step in steps if of(step)]
        times = leave_out(steps, group, of, constants)
        times = times[~np.isnan(times)]
        rows.append(_score(name, asked, times))
        found["worst"][name] = _worst([group(step) for step in asked], errors_of(asked, times))
        found["intervals"] += _intervals(name, asked, times)
        found["held"][name] = _share_held(asked, times)
        if name == CARD:
            found["pairs"] = _pairs(asked, errors_of(asked, times))
    return found


CARD, GENERATION, FAMILY = "many GPUs, card left out", "many GPUs, generation left out", "timm, family left out"
WAYS: tuple[tuple[str, Callable[[Step], str], Callable[[Step], bool]], ...] = (
    (CARD, lambda step: step.card, lambda step: not _is_timm(step)),
    (GENERATION, lambda step: step.generation, lambda step: not _is_timm(step)),
    (FAMILY, lambda step: step.family, lambda step: _is_timm(step) and not step.forward_only),
)
"""What is left out together, and of which rows errors are wanted."""


def _score(name: str, steps: Sequence[Step], times: np.ndarray) -> dict[str, Any]:
    errors = errors_of(steps, times)
    size = np.abs(errors)
    batches, measured = np.array([[step.batch_size, step.seconds] for step in steps]).T
    return {
        "name": name,
        "n": len(steps),
        "median": float(np.median(size)),
        "mean": float(size.mean()),
        "p90": float(np.quantile(size, 0.9)),
        "bias": float(np.median(errors)),
        "rank": float(spearmanr(batches / times, batches / measured)[0]),
    }


def _worst(groups: Sequence[str], errors: np.ndarray) -> dict[str, Any]:
    """The group of the largest median error."""
    medians = {one: float(np.median(np.abs(errors[[group == one for group in groups]]))) for one in sorted(set(groups))}
    name = max(medians, key=lambda one: medians[one])
    return {"group": name, "median": medians[name]}


def _pairs(steps: Sequence[Step], errors: np.ndarray) -> list[dict[str, Any]]:
    """How often the ratio of two cards is within 10 %, lambda's ResNet-50."""
    found = []
    for precision in ("tf32", "fp16"):
        rows = [
            (step.card, 1 + error)
            for step, error in zip(steps, errors, strict=True)
            if step.source == "lambda" and step.precision == precision
        ]
        ratios = np.array([b / a for (one, a), (other, b) in itertools.combinations(rows, 2) if one != other])
        close = float((np.maximum(ratios, 1 / ratios) <= 1.1).mean())
        found.append({"precision": precision, "n": len(ratios), "close": close})
    return found


def _intervals(name: str, steps: Sequence[Step], times: np.ndarray) -> list[dict[str, Any]]:
    """What 90 % of measurements were of the estimate, by precision."""
    ratios = 1 / (1 + errors_of(steps, times))
    found = []
    for precision in sorted({step.precision for step in steps}):
        some = ratios[[step.precision == precision for step in steps]]
        low, high = np.quantile(some, [0.05, 0.95])
        found.append({"name": name, "precision": precision, "n": len(some), "low": float(low), "high": float(high)})
    return found


def _share_held(steps: Sequence[Step], times: np.ndarray) -> float:
    """Share of measurements in the interval that is shipped."""
    ratios = 1 / (1 + errors_of(steps, times))
    ends = [speed_interval(1.0, step.device, step.precision) for step in steps]
    return float(np.mean([low <= ratio <= high for ratio, (low, high) in zip(ratios, ends, strict=True)]))


def main(folder: Path, *, shipped: bool = False) -> None:
    """Fit, leave out, and print; or print the errors of the shipped constants alone."""
    found = validate(folder, shipped=shipped)
    click.echo(found["constants"])
    for row in found["errors"]:
        numbers = ", ".join(f"{key} {row[key]:.4f}" for key in ("median", "mean", "p90", "bias", "rank"))
        click.echo(f"{row['name']}: n {row['n']}, {numbers}")
    for name, worst in found["worst"].items():
        click.echo(f"{name}: largest median {worst['median']:.4f} ({worst['group']})")
        click.echo(f"{name}: the shipped interval holds {found['held'][name]:.4f}")
    for row in found["pairs"]:
        click.echo(f"pairs of cards, {row['precision']}: n {row['n']}, within 10 % {row['close']:.4f}")
    for row in found["intervals"]:
        ends = f"{row['low']:.3f} to {row['high']:.3f}"
        click.echo(f"{row['name']}, {row['precision']}: n {row['n']}, 90 % of measurements are {ends} of the estimate")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--shipped", is_flag=True, help="Only print the errors of the constants that are shipped.")
def command(folder: Path, shipped: bool) -> None:
    """Fit the roofline's constants to the measurements in FOLDER and print how well they hold.

    \b
    Examples:
      python -m tools.fit_roofline ../shared/data
      python -m tools.fit_roofline ../shared/data --shipped
    """  # noqa: D301
    main(folder, shipped=shipped)


if __name__ == "__main__":
    command()
