"""The first page: the answer, its figure, and what to mind: at most five lines."""

from __future__ import annotations

from collections.abc import Sequence

from bench.analysis import Weakens, headline
from bench.comparison import Comparison
from bench.records import Status
from bench.report.blocks import Block, Bullets, Headline, Strong, Words
from bench.report.contents import Contents, Section
from bench.report.escape import plain
from bench.report.hardware import SPEED
from bench.report.verdict import verdict_notice
from bench.report.words import listed, ratio_words


def build(contents: Contents) -> Sequence[Block]:
    """The sentence and its figure come first; then whether it may be published, what was measured, and the rest."""
    blocks: list[Block] = [Headline(_answer(contents))]
    blocks += [contents.headline] if contents.headline else []
    return [*blocks, verdict_notice(contents), _scope(contents)]


def _answer(contents: Contents) -> str:
    """The speeds and the estimates' errors; of several machines, how fast they are against the baseline."""
    hardware = contents.hardware
    compared = {} if hardware is None else hardware.comparisons
    means = {name: (found, found.geomean.get(SPEED)) for name, found in compared.items()}
    parts = [
        f"{name} trains at {ratio_words(mean.ratio, mean.low, mean.high)} its throughput, in the geometric mean of "
        f"{mean.n} of {mean.n_planned} cases ({_called(found)} of {mean.n} called different)"
        for name, (found, mean) in means.items()
        if mean is not None and mean.ratio is not None
    ]
    if hardware is None or not parts:
        return headline(contents.summary)
    return f"Against {hardware.baseline}: {'; '.join(parts)}. In brackets: 95 % intervals over the cases."


def _called(found: Comparison) -> int:
    """How many cases are faster or slower than the baseline's, beyond chance and margin."""
    return int(found.cases.loc[found.cases["metric"] == SPEED, "verdict"].isin(["faster", "slower"]).sum())


_FIRST_PAGE = ("cpu_only", "synthetic_data")
"""The findings that bound what the numbers are about, said on the first page."""


def _scope(contents: Contents) -> Bullets:
    """What was measured, on what, how often, and how far to trust it, a line each."""
    summary, frame = contents.summary, contents.frame
    ran = summary[summary["status"] != Status.SKIPPED]
    planned, ok = int(ran["runs_planned"].sum()), int(ran["runs_ok"].sum())
    processes = sorted({int(count) for count in summary["processes"] if count > 0})
    weak = [finding.code.replace("_", " ") for finding in contents.findings.weakening(Weakens.READING)]
    warmup = sorted({int(count) for count in frame["warmup_steps"].dropna()})
    spread = f"{processes[0]} to {processes[-1]}" if len(processes) > 1 else f"{processes[0]}" if processes else "no"
    noun = "process" if processes == [1] else "processes"
    models, datasets = (listed(dict.fromkeys(summary[axis]), 6) for axis in ("model", "dataset"))
    described = "".join(f" {plain(text, 200).rstrip('.')}." for text in contents.noted("description")[:1])
    items: list[Words] = [
        (
            Strong("Measured: "),
            f"{len(ran)} cases ({models} on {datasets}) on {listed(contents.machines, 4)}; "
            f"{ok} of {planned} runs ended well.{described}",
        ),
        (
            Strong("How: "),
            f"{spread} fresh {noun} a case, every step timed after {listed(warmup, 4)} steps of warm-up; "
            "intervals are over processes.",
        ),
        (
            Strong("Trust: "),
            f"the numbers are weakened by: {listed(weak, 9)}; see Validity."
            if weak
            else "no problems found with the numbers; what they do not cover is under Validity.",
        ),
    ]
    bounds = " ".join(finding.text for finding in contents.findings if finding.code in _FIRST_PAGE)
    return Bullets([*items, *([(Strong("Mind: "), bounds)] if bounds else [])])


SECTION = Section(order=10, title="", build=build)
