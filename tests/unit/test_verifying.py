"""The search for the batch size at which real steps end, without any GPU."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import DeviceError
from bench.sweep import verifying
from bench.sweep.verifying import MAX_RUNS, Verified, search_limit
from tests import plugins


def trials(limit: int, start: int, budget: int = MAX_RUNS) -> tuple[tuple[int | None, int | None], list[int]]:
    tried: list[int] = []

    def fits(batch_size: int) -> bool:
        tried.append(batch_size)
        return batch_size <= limit

    return search_limit(start, fits, budget), tried


def test_an_exact_estimate_takes_two_runs() -> None:
    assert trials(100, 100) == ((100, 101), [100, 101])


def test_no_batch_above_the_most_is_tried() -> None:
    tried: list[int] = []

    def fits(batch_size: int) -> bool:
        tried.append(batch_size)
        return True

    assert search_limit(90, fits, MAX_RUNS, 100) == (100, None)
    assert max(tried) == 100
    assert search_limit(100, fits, MAX_RUNS, 100) == (100, None)
    assert tried[-1:] == [100]
    assert Verified(100, None, (), 100, 100).exact


@pytest.mark.parametrize(("start", "limit"), [(100, 101), (100, 99), (100, 130), (130, 100), (3, 1)])
def test_an_estimate_that_is_off_is_bracketed_and_halved(start: int, limit: int) -> None:
    found, tried = trials(limit, start)
    assert found == (limit, limit + 1)
    assert len(tried) == len(set(tried)) <= MAX_RUNS


def test_a_device_that_holds_no_sample_has_no_largest_batch() -> None:
    found, tried = trials(0, 3)
    assert found == (None, 1)
    assert tried[-1] == 1


def test_runs_end_with_the_budget_and_leave_a_bracket() -> None:
    (low, high), tried = trials(2000, 1000)
    assert len(tried) == MAX_RUNS
    assert low is not None and high is not None and low <= 2000 < high


@given(limit=st.integers(0, 5000), start=st.integers(1, 5000), budget=st.integers(1, 60))
def test_the_answer_is_never_on_the_wrong_side(limit: int, start: int, budget: int) -> None:
    (low, high), tried = trials(limit, start, budget)
    assert 1 <= len(tried) <= budget and min(tried) >= 1 and len(tried) == len(set(tried))
    assert low is None or low <= limit
    assert high is None or high > limit
    if budget == 60:
        assert high == limit + 1 and (low or 0) == limit


def test_without_a_gpu_it_refuses_before_it_starts_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "LocalLauncher", lambda: pytest.fail("something was started"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(DeviceError) as caught, verifying.present_gpu("rtx3090"):
        pytest.fail("there is no GPU")
    assert str(caught.value).startswith("--verify and --device auto need a GPU, and this machine has none to use (")
    assert "give --device NAME without --verify" in str(caught.value)


@pytest.mark.parametrize("arguments", [["--device", "rtx3090", "--verify"], ["--device", "auto"]])
def test_the_command_says_so_without_a_traceback(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = plugins.bench("fit", "--model", "mlp", *arguments)
    assert done.returncode == 2
    assert "need a GPU, and this machine has none to use" in done.stderr
    assert "tracing" not in done.stderr and "Traceback" not in done.stderr
