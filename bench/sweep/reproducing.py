"""Results of others measured again: what differs from here, the same plan, and an answer for each case.

The plan is made from the configuration that the results note, checked as any other, and holds their cases alone.
Nothing that comes with the results is run: a model of somebody's own file needs the file, named by whoever reproduces.
"""

from __future__ import annotations

import contextlib
import functools
import math
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from bench.analysis import Reproduced, machine_labels, reproductions, results_key
from bench.analysis.reproduction import ANSWERS, NOTE, Answer
from bench.bundles import manifest_digest, open_results, results_name, safe_name
from bench.comparison import (
    Comparison,
    Difference,
    check_across,
    check_numbers,
    compare,
    field_words,
    find_differences,
    select_runs,
    verdict_words,
)
from bench.config import SweepConfig, check_config
from bench.config.values import read_devices
from bench.errors import BenchError, ConfigError, DeviceError
from bench.launchers import Launcher, LocalLauncher
from bench.plan import build_cases, case_code_key, reads_images, with_data
from bench.probes.selection import check_request
from bench.records import AXES, Case, DataFacts, Environment, Planned, Status, columns
from bench.stats import CONFIDENCE, MARGIN, Verdict
from bench.store import DATA_FOLDER, Store, load_notes, planned_runs, read_results
from bench.sweep.session import SweepOptions, held_device, read_environment
from bench.sweep.stages import packages_of, run_sweep
from bench.terminal import Progress
from bench.units import exact_bytes

SPEED, MEMORY = "samples_per_s", "peak_allocated_bytes"

MAX_CASES = 200_000
"""Of a configuration that comes with results: a larger product of axes is refused before it is made."""

_DECIDE_BYTES = frozenset(
    ("device", "gpu_name", "torch_version", "cuda_version", "cudnn_version", "cpu_capability", "code_key")
)
"""Where all of these are equal, a step takes the same bytes: libraries choose kernels and workspaces by them.

On a CPU its model is one more.
"""


@dataclass(frozen=True, slots=True)
class CaseAnswer:
    """Whether one case came out as in the original results.

    Attributes:
        case_key: Which case.
        label: The case in words.
        answer: `different` where any metric is, `same` where all are, else `unclear`.
        reason: Why, in words without a full stop.
        metrics: By name, the answer and the reason of each metric that both sides measured.
    """

    case_key: str
    label: str
    answer: Answer
    reason: str
    metrics: Mapping[str, tuple[Answer, str]]


@dataclass(frozen=True, slots=True)
class Reproduction:
    """The outcome of measuring results again.

    Attributes:
        original: The results.
        differences: What differs between the original and here, as `bench.comparison` has it; before any run, unless
            something ran.
        not_planned: Why cases of the original are not planned here, by case key.
        out: The folder of the new results; `None` where nothing was to run.
        cases: An answer for each case of the original; none where nothing was to run.
        comparison: What the answers on speed were read from; `None` where nothing was to run.
    """

    original: Reproduced
    differences: Sequence[Difference]
    not_planned: Mapping[str, str]
    out: Path | None = None
    cases: Sequence[CaseAnswer] = ()
    comparison: Comparison | None = None

    @property
    def counts(self) -> dict[Answer, int]:
        """How many cases have each answer."""
        found = Counter(case.answer for case in self.cases)
        return {word: found[word] for word in ("same", "different", "unclear")}


@dataclass(frozen=True, slots=True)
class ReproduceOptions:
    """How to reproduce results.

    Attributes:
        out: Folder for the new results; `reports/NAME-reproduced` by default.
        device: `auto`, `cpu`, `cuda` or `cuda:N`; the original's kind of device by default.
        only: `FIELD=PATTERN` each: only such runs of the original, as with `bench compare --only`.
        across: Axes and flags that may differ.
        margin: The smallest change that counts, as a fraction.
        confidence: Of the intervals, and of no false `different` among the speeds of all cases.
        check_only: Only say what differs; nothing runs.
        report: Whether to render a report of the new results.
    """

    out: Path | None = None
    device: str | None = None
    only: Sequence[str] = ()
    across: Sequence[str] = ()
    margin: float = MARGIN
    confidence: float = CONFIDENCE
    check_only: bool = False
    report: bool = True


@dataclass(frozen=True, slots=True)
class _Original:
    """Results as they are to be measured again.

    Attributes:
        known: What identifies them.
        runs: Those that count, of one environment.
        config: Their configuration, with a fixed number of repeats.
        processes: How many of each case are compared; `None` for all, where the sweep had no say in their number.
        cases: Keys of the cases that ran there.
    """

    known: Reproduced
    runs: pd.DataFrame
    config: SweepConfig
    processes: int | None
    cases: frozenset[str]

    @property
    def kind(self) -> str:
        """Of the device: `cpu` or `cuda`."""
        return str(self.runs["device"].iloc[0])


def reproduce(results: str | Path, options: ReproduceOptions, progress: Progress) -> Reproduction:
    """Measure results again, and compare.

    Finished runs are kept whatever happens: the same call goes on with what is missing.

    Args:
        results: A bundle, a results folder, or an address of either.
        options: How.
        progress: Hears of it.

    Raises:
        BenchError: The results cannot be read, hold several machines or configurations, or name what is not here; the
            device or the folder cannot be used; or a flag differs that would make the cases do different work.
        KeyboardInterrupt: On Ctrl-C or SIGTERM.
    """
    check_numbers(options.margin, options.confidence)
    check_across(options.across)
    if options.device is not None:
        _check_device(options.device)
    original = _read_original(results, options.only)
    out = options.out or Path("reports") / f"{safe_name(original.known.name)}-reproduced"
    if not options.check_only:
        _refuse_other_results(out, original.known)
    launcher = LocalLauncher()
    environment, kind = _here(original, options, launcher)
    planned = build_cases(original.config, kind)
    differences = _differences(original, environment, planned)
    not_planned = _not_planned(original.cases, planned)
    found = Reproduction(original.known, differences, not_planned)
    if options.check_only:
        return found
    _refuse_different_work(differences, options.across)
    for item in differences:
        progress.say(f"differs: {_side_by_side(item)}")
    sweep = SweepOptions(
        out,
        device=options.device or original.kind,
        report=False,  # it has the answers
        cases=original.cases,
        notes={NOTE: asdict(original.known)},
    )
    run_sweep(original.config, sweep, progress)
    runs = planned_runs(read_results(out / DATA_FOLDER))
    here = runs[runs["environment_key"] == environment.key]  # a folder keeps what ran before the machine changed
    comparison = compare(
        original.runs,
        (here if len(here) else runs).reset_index(drop=True),
        margin=options.margin,
        confidence=options.confidence,
        across=options.across,
        metrics=[name for name in (SPEED, MEMORY) if original.runs[name].notna().any()] or None,
        processes=original.processes,
    )
    answers = _answers(original, here if len(here) else runs, comparison)
    note = {
        "differs": [_side_by_side(item) for item in comparison.differences],
        "cases": [
            {name: getattr(case, name) for name in ("case_key", "label", "answer", "reason")} for case in answers
        ],
    }
    for key in (here if len(here) else runs)["environment_key"].unique():
        Store(out / DATA_FOLDER).add_notes(str(key), {ANSWERS: note})
    if options.report:
        from bench.report import render_report

        render_report([out / DATA_FOLDER], out)
    return replace(found, differences=comparison.differences, out=out, cases=answers, comparison=comparison)


def _check_device(requested: str) -> None:
    """Refuse a request that is not for one device. Raises DeviceError."""
    try:
        check_request(requested)
    except DeviceError as error:
        with contextlib.suppress(ValueError):
            read_devices(requested)  # several, or a UUID
            raise DeviceError(
                f"device {requested}: results are measured again on one device, named auto, cpu, cuda or cuda:N. For "
                "each of several, run the command again with its --device and an --out of its own"
            ) from error
        raise


def _read_original(results: str | Path, only: Sequence[str]) -> _Original:
    """The results, checked. Raises BenchError."""
    name = results_name(results)
    with open_results([results]) as (folder,):
        loaded = read_results(folder)
        loaded.warn()
        frame = planned_runs(loaded)
        digest = manifest_digest(folder)
    key = results_key(frame)
    runs = select_runs(frame, only)
    ran = runs[runs["status"] != Status.SKIPPED].reset_index(drop=True)
    if ran.empty:
        raise BenchError(f"{results}: every case was skipped, so that there is nothing to measure again")
    environment = _one_environment(results, ran)
    configs = [
        note.values.get("config")
        for note in loaded.notes
        if note.environment_key == environment and note.values.get("config")
    ]
    distinct = [config for place, config in enumerate(configs) if config not in configs[:place]]
    if len(distinct) != 1:
        why = "notes no configuration" if not distinct else f"joins {len(distinct)} configurations of one machine"
        raise BenchError(f"{results}: {why}, so that its plan cannot be made again; give the results of one sweep")
    checked = _checked(distinct[0], f"{results}: config")
    measure = checked.measure
    fixed = {"repeats": measure.least_repeats, "target_interval": None, "time_budget": None}
    config = checked.model_copy(update={"measure": measure.model_copy(update=fixed)})
    processes = measure.least_repeats if measure.target_interval is not None else None
    return _Original(Reproduced(key, name, digest), ran, config, processes, frozenset(ran["case_key"]))


def _one_environment(results: str | Path, runs: pd.DataFrame) -> str:
    """The key of the one environment of some runs. Raises BenchError that names how to choose among several."""
    keys = list(dict.fromkeys(runs["environment_key"]))
    if len(keys) > 1:
        labels = machine_labels(runs)
        told = [name for name in ("gpu_name", "cpu_model", "torch_version", "host_hash") if runs[name].nunique() > 1]
        how = f"--only '{told[0]}={runs[told[0]].dropna().iloc[0]}'" if told else "the folder of one of them"
        raise BenchError(
            f"{results}: has results of {len(keys)} environments ({', '.join(labels[key] for key in keys[:4])}), and "
            f"those of one are measured again. Choose one: {how}"
        )
    return str(keys[0])


def _checked(noted: Any, place: str) -> SweepConfig:
    """A configuration that came with results. Raises ConfigError with every fault."""
    if isinstance(noted, str):  # earlier versions noted the file's text
        try:
            noted = tomllib.loads(noted)
        except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
            raise ConfigError([f"{place}: not valid TOML: {error}"]) from error
    if not isinstance(noted, Mapping):
        raise ConfigError([f"{place}: must be a table"])
    config = check_config(noted, place)
    grids = (config.grid, *config.include)
    size = sum(math.prod(len(getattr(grid, axis) or (0,)) for axis in AXES) for grid in grids)
    if size > MAX_CASES:
        raise ConfigError([f"{place}: {size:,} cases, more than the {MAX_CASES:,} that results of others may plan"])
    return config


def _here(original: _Original, options: ReproduceOptions, launcher: Launcher) -> tuple[Environment, str]:
    """The environment of the device that would measure, and its kind.

    Raises:
        BenchError: It cannot be used. Where nothing is to run, any other device is compared instead.
    """
    read = functools.partial(read_environment, launcher)
    limit = original.config.limits.device_memory
    try:
        with held_device(options.device or original.kind, ready=launcher.warm) as choice:
            environment, _ = read(choice, limit_bytes=limit)
    except DeviceError:
        if not options.check_only or options.device is not None:
            raise
        with held_device("auto", ready=launcher.warm) as choice:
            environment, _ = read(choice)
    if "timm" not in packages_of(original.config):
        environment = replace(environment, timm_version=None)
    return environment, environment.device


def _differences(original: _Original, here: Environment, planned: Iterable[Case]) -> list[Difference]:
    """What differs between the original and here, as far as it is known before anything runs.

    What a run reads is taken to be as it was: the data are found when the runs are planned.
    """
    runs = original.runs
    protocol = asdict(original.config.protocol)
    del protocol["data_root"]
    codes = _code_keys(original, planned)
    imagined = {name: pd.Series([value] * len(runs), dtype=object) for name, value in (asdict(here) | protocol).items()}
    pairs = zip(runs["case_key"], runs["code_key"], strict=True)
    imagined["code_key"] = pd.Series([codes.get(case, key) for case, key in pairs])
    found: list[Difference] = find_differences(runs, runs.assign(**imagined))
    return found


def _code_keys(original: _Original, planned: Iterable[Case]) -> dict[str, str]:
    """The key of the code here by case key, with the data of the original."""
    cases, facts = {case.key: case for case in planned}, columns(DataFacts)
    found = {}
    for row in original.runs.drop_duplicates("case_key").to_dict("records"):
        case = cases.get(row["case_key"])
        if case is not None:
            known = {name: None if pd.isna(row[name]) else row[name] for name in facts}
            reads = reads_images(case, gradient_noise=original.config.measure.gradient_noise)
            source = str(row["data_source"]) if reads and not pd.isna(row["data_source"]) else None
            run = with_data(Planned(case, 0, 0, None, case_code_key(case)), DataFacts(**known), source)
            found[case.key] = run.code_key
    return found


def _not_planned(wanted: Iterable[str], planned: Mapping[Case, str | None]) -> dict[str, str]:
    """Why cases that ran there do not run here, by case key."""
    reasons = {case.key: reason for case, reason in planned.items()}
    why = {key: reasons.get(key, "the configuration does not have this case here") for key in sorted(wanted)}
    return {key: reason for key, reason in why.items() if reason is not None}


def _refuse_different_work(differences: Sequence[Difference], across: Sequence[str]) -> None:
    """Refuse to run where a flag differs: `compare` would refuse the result. Raises BenchError."""
    flags = [item for item in differences if item.kind == "flags" and item.field not in across]
    if flags:
        lines = [_side_by_side(item) for item in flags]
        options = " ".join(f"--across {item.field}" for item in flags)
        raise BenchError("\n".join([*lines, f"set it as it was there, or accept the difference: {options}"]))


def _side_by_side(item: Difference) -> str:
    there, here = (field_words(item.field, value) for value in (item.baseline, item.candidate))
    return f"{item.field}: {there} there, {here} here"


def _refuse_other_results(out: Path, original: Reproduced) -> None:
    """Refuse a folder that holds anything but a reproduction of these results. Raises BenchError."""
    if next((out / DATA_FOLDER).glob("plan-*.parquet"), None) is None:
        return
    if set(reproductions(load_notes(out / DATA_FOLDER))) != {original.key}:
        raise BenchError(f"{out}: holds other results than a reproduction of {original.name}; name another with --out")


def _answers(original: _Original, here: pd.DataFrame, comparison: Comparison) -> list[CaseAnswer]:
    """An answer for each case of the original, in the order of the comparison."""
    deciding = _DECIDE_BYTES | {"cpu_model"} if original.kind == "cpu" else _DECIDE_BYTES
    exact = not {item.field for item in comparison.differences} & deciding
    byte_sets = [_bytes_by_case(runs) for runs in (original.runs, here)] if exact else [{}, {}]
    labels = {item.case_key: item.label for item in comparison.missing}
    labels |= dict(zip(comparison.cases["case_key"], comparison.cases["label"], strict=True))
    ends: dict[str, dict[str, tuple[str, str | None]]] = {}
    for item in comparison.missing:
        ends.setdefault(item.case_key, {})[item.side] = (item.status, item.reason)
    rows: dict[str, list[dict[Any, Any]]] = {}
    for row in comparison.cases.to_dict("records"):
        rows.setdefault(row["case_key"], []).append(row)
    found = []
    for key in (key for key in labels if key in original.cases):
        if key in ends:
            word, reason = _by_ends(ends[key])
            found.append(CaseAnswer(key, labels[key], word, reason, {}))
            continue
        metrics: dict[str, tuple[Answer, str]] = {}
        for row in rows.get(key, ()):
            name = row["metric"]
            there, now = (known.get(key, frozenset()) for known in byte_sets)
            decided = _by_bytes(there, now) if name == MEMORY else None
            metrics[name] = decided or _by_verdict(name, row)
        words = [word for word, _ in metrics.values()]
        answer: Answer = "different" if "different" in words else "same" if set(words) == {"same"} else "unclear"
        why = "; ".join(f"{_NAMES[name]} {word}, {reason}" for name, (word, reason) in metrics.items())
        found.append(CaseAnswer(key, labels[key], answer, why, metrics))
    return found


_NAMES = {SPEED: "speed", MEMORY: "peak memory"}


def _bytes_by_case(runs: pd.DataFrame) -> dict[str, frozenset[int]]:
    """The peaks of a case's processes that ended well, in bytes."""
    good = runs[(runs["status"] == Status.OK) & runs[MEMORY].notna()]
    return {str(key): frozenset(map(int, values)) for key, values in good.groupby("case_key")[MEMORY]}


def _by_bytes(there: frozenset[int], here: frozenset[int]) -> tuple[Answer, str] | None:
    """Whether peaks that should be equal to the byte are; `None` where nothing says that they should be."""
    if len(there) != 1 or not here:  # the original's own processes differ, or something that decides them does
        return None
    if here == there:
        return "same", f"{exact_bytes(*there)} in every process"
    now = " or ".join(map(exact_bytes, sorted(here)))
    return "different", f"{exact_bytes(*there)} there, {now} here, and nothing that decides it differs"


def _by_verdict(metric: str, row: Mapping[Any, Any]) -> tuple[Answer, str]:
    """The answer that the statistics of a comparison give."""
    verdict = row["verdict"]
    if verdict in (Verdict.SAME, Verdict.UNCLEAR):
        return ("same" if verdict == Verdict.SAME else "unclear"), str(row["reason"])
    interval = "" if pd.isna(row["low"]) else f" ({row['low']:.4f} to {row['high']:.4f})"
    return "different", f"{verdict_words(metric, verdict)} here, ratio {row['ratio']:.4f}{interval}"


def _by_ends(ends: Mapping[str, tuple[str, str | None]]) -> tuple[Answer, str]:
    """The answer for a case that at least one side did not measure, by how it ended on each."""
    (there, _), (here, why) = (ends.get(side, (str(Status.OK), None)) for side in ("baseline", "candidate"))
    told = f"{there} there, {here} here{f': {why}' if why else ''}"
    if there == here == Status.OOM:
        return "same", "out of memory on both sides"
    ended = {str(Status.OK), str(Status.OOM)}
    broken = {str(status) for status in (Status.OOM, Status.TIMEOUT, Status.CRASHED, Status.FAILED, Status.NAN_LOSS)}
    if there != here and there in ended and here in ended | broken:
        return "different", told
    return "unclear", told
