"""Outlines of steps, the files that hold them, and what two of them say of a change."""

from __future__ import annotations

import json
import multiprocessing
import re
from dataclasses import replace
from pathlib import Path

import pytest

from bench.errors import BenchError, StoreError
from bench.guard import (
    Allowed,
    Change,
    Course,
    Guarded,
    Line,
    Outline,
    change_fields,
    change_lines,
    read_baselines,
    update_baselines,
)
from bench.guard.changes import How, changed_lines
from bench.guard.environments import find_python

MIB = 1 << 20
PARTS = {"parameters": 4 * MIB, "activations": 16 * MIB}
STEP = (
    Line("forward", "body.0", "convolution", 8 * MIB, 1, "backward body.0"),
    Line("forward", "body.1", "relu", 8 * MIB, 1, "backward body.1"),
    Line("backward", "body.1", "threshold_backward", 8 * MIB, 1, "backward body.0"),
    Line("backward", "body.0", "convolution_backward", 4 * MIB, 1, "kept"),
)
STANDING = (
    Line("parameters", "body.0", "", 4 * MIB, 2, "kept"),
    Line("gradients", "body.0", "", 4 * MIB, 1, "zero_grad"),
)
ENVIRONMENT = {"bench": "0.1.0", "torch": "2.9.0", "python": "3.12"}


def guarded(peak: int = 20 * MIB, step: tuple[Line, ...] = STEP, **changes: object) -> Guarded:
    outline = Outline(peak, 2 * peak, PARTS, "backward body.1 threshold_backward", STANDING, step)
    held = Guarded({"model": "net", "batch_size": "8", "device": "h200"}, ENVIRONMENT, "0123456789abcdef", outline)
    return replace(held, **changes)


def change(before: Guarded, after: Guarded | str, allow: str = "0 B") -> Change:
    return Change.of("net", before, after, Allowed.parse(allow))


def test_a_file_gives_back_what_was_written_with_a_line_for_each_line(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "memory.json"
    assert update_baselines(path, {"net": guarded()})
    assert read_baselines(path) == {"net": guarded()}
    text = path.read_text()
    assert '["forward", "body.0", "convolution", 8388608, 1, "backward body.0"],\n' in text
    assert '"torch": "2.9.0"' in text
    assert [*path.parent.iterdir()] == [path]


def test_writing_the_same_again_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    update_baselines(path, {"b": guarded(), "a": guarded()})
    written = path.read_text()
    assert not update_baselines(path, {"b": guarded()})
    assert path.read_text() == written
    assert [*json.loads(written)["cases"]] == ["a", "b"]


def test_a_change_of_one_line_is_one_line_of_the_difference(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    update_baselines(path, {"net": guarded()})
    before = path.read_text().splitlines()
    grown = (STEP[0], STEP[1]._replace(size_bytes=9 * MIB), *STEP[2:])
    update_baselines(path, {"net": guarded(step=grown)})
    after = path.read_text().splitlines()
    assert len(before) == len(after)
    assert sum(one != other for one, other in zip(before, after, strict=True)) == 1


def _write(path: Path, number: int) -> None:
    for turn in range(5):
        update_baselines(path, {f"case {number} {turn}": guarded(peak=number * MIB)})


def test_processes_that_write_one_file_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(path, number)) for number in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert len(read_baselines(path)) == 30


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not a file of memory baselines"),
        ("[]", "not a file of memory baselines"),
        ('{"format": 1}', "not a file of memory baselines"),
        ('{"format": 1, "cases": {"a": {"case": {}}}}', "not a file of memory baselines"),
        ('{"format": 2, "cases": {}}', "newer than this version"),
        ('{\n<<<<<<< ours\n"format": 1\n=======\n>>>>>>> theirs\n}', "conflict markers"),
    ],
)
def test_a_file_that_is_no_baseline_is_refused_with_its_path(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "memory.json"
    path.write_text(content)
    with pytest.raises(StoreError, match=said) as raised:
        read_baselines(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("place", [0, 3, 4])
def test_a_line_of_another_type_is_refused(tmp_path: Path, place: int) -> None:
    path = tmp_path / "memory.json"
    update_baselines(path, {"net": guarded()})
    tree = json.loads(path.read_text())
    tree["cases"]["net"]["step"][0][place] = None
    path.write_text(json.dumps(tree))
    with pytest.raises(StoreError):
        read_baselines(path)


@pytest.mark.parametrize(
    ("peak", "allow", "course"),
    [
        (20 * MIB, "0 B", Course.SAME),
        (20 * MIB + 512, "0 B", Course.GREW),
        (20 * MIB + 512, "512 B", Course.ALLOWED),
        (20 * MIB + 1024, "512 B", Course.GREW),
        (21 * MIB, "5 %", Course.ALLOWED),
        (21 * MIB, "4.9 %", Course.GREW),
        (19 * MIB, "0 B", Course.SHRANK),
    ],
)
def test_growth_counts_from_the_first_byte_beyond_what_is_allowed(peak: int, allow: str, course: Course) -> None:
    assert change(guarded(), guarded(peak), allow).status is course


@pytest.mark.parametrize("given", ["-1 %", "much", "", "nan %", "1 %%"])
def test_an_allowance_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(BenchError, match="16 MiB, or a percentage"):
        Allowed.parse(given)


def test_what_is_refused_is_never_unchanged() -> None:
    found = change(guarded(), "the step reads values")
    assert found.status is Course.REFUSED
    assert "reads values" in " ".join(change_lines(found))


def how(before: tuple[Line, ...], after: tuple[Line, ...]) -> list[tuple[How, str]]:
    moved = changed_lines(guarded(step=before).outline, guarded(step=after).outline)
    return [(item.how, str(item.line)) for item in moved]


def test_the_first_operators_at_which_traces_part_are_named_in_order() -> None:
    extra = Line("forward", "body.1", "sigmoid", 8 * MIB, 1, "backward body.1")
    assert how(STEP, (*STEP[:2], extra, *STEP[2:])) == [(How.NEW, "forward body.1 sigmoid")]
    assert how((*STEP[:2], extra, *STEP[2:]), STEP) == [(How.GONE, "forward body.1 sigmoid")]
    larger = (STEP[0], STEP[1]._replace(size_bytes=1), *STEP[2:])
    assert how(STEP, larger) == [(How.SIZE, "forward body.1 relu")]
    retained = (STEP[0], STEP[1]._replace(until="kept"), *STEP[2:])
    assert how(STEP, retained) == [(How.FREED, "forward body.1 relu")]
    assert how(STEP, STEP) == []


def test_parameters_come_before_the_step_and_what_it_leaves_comes_last() -> None:
    before, after = guarded().outline, guarded().outline
    standing = tuple(line._replace(size_bytes=line.size_bytes + 4) for line in STANDING)
    step = (STEP[0]._replace(size_bytes=1), *STEP[1:])
    moved = changed_lines(before, replace(after, standing=standing, step=step))
    assert [item.line.phase for item in moved] == ["parameters", "forward", "gradients"]


def test_an_environment_that_differs_is_told_from_a_model_that_does() -> None:
    newer = guarded(21 * MIB, environment={**ENVIRONMENT, "torch": "2.13.0"})
    same_code = change(guarded(), newer)
    assert "comes from the environment (torch 2.9.0 -> 2.13.0)" in same_code.cause
    both = change(guarded(), replace(newer, code="f" * 16))
    assert "and so does the code" in both.cause
    assert change(guarded(), guarded(21 * MIB, code="f" * 16)).cause == ""
    assert change(guarded(), replace(newer, outline=guarded().outline)).cause == ""  # nothing to explain
    other = change(guarded(), guarded(21 * MIB, case={"model": "net", "batch_size": "16", "device": "h200"}))
    assert "batch_size 8 -> 16" in other.cause


def test_the_fields_for_scripts_have_the_figures_and_the_operators() -> None:
    larger = (STEP[0], STEP[1]._replace(size_bytes=9 * MIB), *STEP[2:])
    fields = change_fields(change(guarded(), guarded(21 * MIB, larger, samples_per_s=100.0)))
    assert (fields["status"], fields["difference_bytes"], fields["changed_lines"]) == ("grew", MIB, 1)
    assert fields["partings"][0]["operator"] == "relu"
    assert fields["estimated_samples_per_s"] == 100.0
    json.dumps(fields)


def test_an_environment_with_the_baselines_versions_is_found_by_its_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = {"python": "3.12", "torch": "2.9.0", "torchvision": "0.24.0"}
    assert find_python(wanted) is None
    packages = tmp_path / ".venv-old" / "lib" / "python3.12" / "site-packages"
    for name in ("torch-2.9.0+cpu", "torchvision-0.24.0"):
        (packages / f"{name}.dist-info").mkdir(parents=True)
    assert find_python(wanted) == tmp_path / ".venv-old" / "bin" / "python"
    assert find_python({**wanted, "torch": "2.9"}) is None


def test_lines_for_people_name_module_operator_and_what_grew() -> None:
    after = guarded(36 * MIB, (STEP[0], STEP[1]._replace(until="kept"), *STEP[2:]))
    grown = replace(after.outline, parts={**PARTS, "activations": 32 * MIB})
    text = "\n".join(change_lines(change(guarded(), replace(after, outline=grown))))
    assert "forward body.1 relu: 8.00 MiB freed in backward body.1 -> after the step" in text
    assert re.search(r"peak lies at backward body\.1 threshold_backward.*activations \+16\.0 MiB", text)
