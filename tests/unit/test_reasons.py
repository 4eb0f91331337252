"""Why things went wrong: reasons that say the same are one, with how many and an example."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bench
from bench.analysis import judge
from bench.analysis.reasons import alike, counted_reasons, group_reasons
from bench.records import Case, Measurement, Status
from tests.results import make_cases, make_results
from tests.sketches import sketching


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 12 MiB",
            "CUDA out of memory. Tried to allocate 512 MiB. GPU 0 has 3.5 GiB",
        ),
        ("an illegal memory access at 0x7f00deadbeef", "an illegal memory access at 0x10"),
        ("/data/a/b.png: cannot be read", "/somewhere/else.png: cannot be read"),
        ("no such file: '/data/a.png'", "no such file: './b/c.png'"),
        ("got input size torch.Size([1, 512, 1, 1])", "got input size torch.Size([1, 64])"),
        ("shapes cannot be multiplied (8x512 and 256x10)", "shapes cannot be multiplied (16x512 and 1024x10)"),
        ("no answer after 60 s", "no answer  after 1,200.5 s"),
    ],
)
def test_reasons_that_differ_in_amounts_addresses_and_paths_are_one(one: str, two: str) -> None:
    assert alike(one) == alike(two)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("ended with exit code 1", "ended with exit code 139"),
        ("ended by signal 9 (SIGKILL)", "ended by signal 11 (SIGSEGV)"),
        ("CUDA error: code=700", "CUDA error: code=702"),
        ("[Errno 2] no such file", "[Errno 13] no such file"),
        ("conv2d has no kernel", "conv3d has no kernel"),
        ("bf16 is not there", "fp16 is not there"),
        ("resnet18 needs more", "resnet50 needs more"),
    ],
)
def test_reasons_of_other_causes_stay_apart(one: str, two: str) -> None:
    assert alike(one) != alike(two)


@given(st.lists(st.one_of(st.none(), st.sampled_from(["a 1", "a 2", "b", "c 0x1", " "]), st.text(max_size=12))))
def test_every_thing_is_in_one_group_and_the_commonest_come_first(reasons: list[str | None]) -> None:
    groups = group_reasons(reasons)
    assert sorted(place for group in groups for place in group.places) == list(range(len(reasons)))
    assert [(-group.count, group.text) for group in groups] == sorted((-group.count, group.text) for group in groups)
    assert all(group.text in (reasons[group.places[0]], "reason unknown") for group in groups)


@pytest.mark.parametrize("text", ["1x" * 5000 + "a", "1,111" * 5000, "/" * 10_000, "a" * 100_000, "0x" * 9000])
def test_a_hostile_reason_takes_no_time(text: str) -> None:
    begun = time.monotonic()
    alike(text)
    assert time.monotonic() - begun < 1.0


def test_what_has_no_room_is_counted() -> None:
    reasons = group_reasons(["a"] * 3 + ["b"] * 2 + ["c", "d", "e"])
    assert counted_reasons(reasons, 2, "table.csv") == "3 x a; 2 x b; and 3 more reasons: see table.csv"
    assert counted_reasons(reasons[:1], 2, "table.csv") == "a"


def _saying(texts: dict[int, str]) -> Callable[[Measurement, Case, int], Measurement]:
    """Gives the failed runs of each batch size their reason."""
    return lambda run, case, _: replace(run, reason=texts.get(case.batch_size, run.reason))


CASES = make_cases(models=("mlp",), datasets=("mnist",), optimizers=("sgd",), batch_sizes=(16, 32, 64, 128, 256, 512))


def test_three_cases_with_three_reasons_are_three_lines(tmp_path: Path) -> None:
    from bench.report import summary_lines

    texts = {16: "KeyError: 'a'", 32: "ValueError: needs 3 channels", 64: "OSError: /x/y.png: gone"}
    frame = bench.load(
        make_results(
            tmp_path / "data", CASES, outcomes=dict.fromkeys(range(3), Status.FAILED), change=_saying(texts), repeats=1
        )
    )
    lines = [line for line in summary_lines(frame, None) if line.startswith("failed ")]
    assert lines == [
        f"failed 1: mlp on mnist, batch {size}: {text}"
        for size, text in sorted(texts.items(), key=lambda item: item[1])
    ]


def test_alike_reasons_are_one_line_with_a_case_and_the_count_of_the_others(tmp_path: Path) -> None:
    from bench.report import render_report, summary_lines

    texts = {16: "cannot read /a/1.png", 32: "cannot read /b/2.png", 64: "KeyError: 'a'"}
    outcomes = {**dict.fromkeys(range(3), Status.FAILED), 3: Status.OOM, 4: Status.TIMEOUT, 5: Status.SKIPPED}
    folder = make_results(tmp_path / "data", CASES, outcomes=outcomes, change=_saying(texts), repeats=2)
    frame = bench.load(folder)
    lines = summary_lines(frame, tmp_path / "index.html")
    assert "failed 4: mlp on mnist, batch 16 and 1 more case: cannot read /a/1.png" in lines
    assert "failed 2: mlp on mnist, batch 64: KeyError: 'a'" in lines
    assert "oom 2: mlp on mnist, batch 128: CUDA out of memory: tried to allocate 2.00 GiB" in lines
    assert "timeout 2: mlp on mnist, batch 256: no answer after 60 s; the run was ended" in lines
    assert "skipped 1: mlp on mnist, batch 512: excluded by a rule of the example" in lines
    assert len(lines) <= 10

    with sketching():
        page = render_report([folder], tmp_path / "report").with_name("report.md").read_text(encoding="utf-8")
    assert "| failed | 4 | 2 | cannot read /a/1.png | mlp on mnist, batch 16 |" in page
    assert "| failed | 2 | 1 | KeyError: 'a' | mlp on mnist, batch 64 |" in page
    (failed,) = [finding.text for finding in judge(frame) if finding.code == "failed"]
    assert "Reasons: failed: 4 x cannot read /" in failed
    assert "; 2 x KeyError: 'a'. timeout: no answer after 60 s" in failed


def test_reasons_without_room_are_counted_and_said_where(tmp_path: Path) -> None:
    from bench.report import summary_lines

    cases = make_cases(models=("mlp",), datasets=("mnist",), optimizers=("sgd",), batch_sizes=range(1, 13))
    texts = {size: f"reason {chr(96 + size)}" for size in range(1, 13)}
    frame = bench.load(
        make_results(
            tmp_path / "data", cases, outcomes=dict.fromkeys(range(12), Status.FAILED), change=_saying(texts), repeats=1
        )
    )
    lines = summary_lines(frame, tmp_path / "index.html")
    assert len(lines) <= 10
    named = [line for line in lines if line.startswith("failed 1: ")]
    assert f"and {12 - len(named)} more reasons: see Validity in the report" in lines


def test_skipped_cases_are_named_with_all_their_reasons(tmp_path: Path) -> None:
    frame = bench.load(make_results(tmp_path / "data", CASES, outcomes=dict.fromkeys((3, 4, 5), Status.SKIPPED)))
    skipped = frame["status"] == Status.SKIPPED
    frame.loc[skipped, "reason"] = ["needs 17 x 17 pixels, not 8 x 8", "needs 17 x 17 pixels, not 9 x 9", "too large"]
    (text,) = [finding.text for finding in judge(frame) if finding.code == "skipped"]
    assert text == "3 of 6 cases skipped: 2 x needs 17 x 17 pixels, not 8 x 8; 1 x too large."


def test_a_long_name_leaves_room_for_the_reason(tmp_path: Path) -> None:
    from bench.records import Choice
    from bench.report import summary_lines

    case = replace(CASES[0], dataset=Choice("folder:" + "/very/long/path" * 20))
    frame = bench.load(make_results(tmp_path / "data", [case, CASES[1]], outcomes={0: Status.FAILED}, repeats=1))
    (line,) = [line for line in summary_lines(frame, None) if line.startswith("failed ")]
    assert line.endswith(", batch 16: RuntimeError: the made-up model raised")
