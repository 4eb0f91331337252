"""How large the batch may be: whose limit ends the search, and batches that fit above ones that do not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.cli.fit import _answer
from bench.devices import Device, load_device
from bench.estimators import fitting
from bench.estimators.fitting import SCANNED_ABOVE, SCANNED_UNBOUNDED, _last, _search, _spans, _Trial, fit_batch
from bench.estimators.memory import Target, trace_peaks
from bench.records import Case, Choice
from tests import plugins


def case(dataset: str, model: str, optimizer: str = "sgd", **settings: Any) -> Case:
    return Case(Choice.of(dataset, settings), Choice(model), Choice(optimizer), 16)


def device(memory_bytes: int, context_bytes: int = 0) -> Device:
    return replace(
        load_device("rtx3090"),
        memory_bytes=memory_bytes,
        context_bytes=context_bytes,
        context_low_bytes=None,
        context_high_bytes=None,
    )


def up_to(limit: int, holes: Iterable[int] = (), again: Iterable[int] = ()) -> Callable[[int], bool]:
    missing, more = set(holes), set(again)
    return lambda batch: (batch <= limit and batch not in missing) or batch in more


def test_a_batch_that_fits_above_ones_that_do_not_is_found_and_so_are_the_holes() -> None:
    found = _search(up_to(271, again=(275, 276)), 60_000, 278)
    assert (found.largest, found.largest_at_all) == (271, 276)
    assert (found.holes, found.searched) == (((272, 274),), (255, 277))


def test_a_hole_below_the_limit_that_bisection_finds_ends_the_batches_that_all_fit() -> None:
    found = _search(up_to(300, holes=(290, 291, 295)), 60_000, 301)
    assert (found.largest, found.largest_at_all) == (289, 300)
    assert found.holes == ((290, 291), (295, 295))


def test_the_search_above_the_limit_is_bounded_and_says_how_far_it_went() -> None:
    assert _search(up_to(1000), 60_000, 5000).searched == (984, 1000 + SCANNED_ABOVE)
    assert _search(up_to(1000), 60_000, None).searched == (1000 - SCANNED_UNBOUNDED, 1000 + SCANNED_UNBOUNDED)
    assert _search(up_to(100), 102, 5000).searched == (84, 102)


@pytest.mark.parametrize(("limit", "expected"), [(0, None), (1, 1), (5, 5), (15, 15), (16, 16), (17, 17), (4097, 4097)])
def test_the_limit_is_exact_where_nothing_is_odd(limit: int, expected: int | None) -> None:
    found = _search(up_to(limit), 1 << 24, limit + 1)
    assert (found.largest, found.largest_at_all, found.holes) == (expected, expected, ())


@pytest.mark.parametrize("most", [1, 5, 16, 17, 60_000])
def test_the_search_ends_at_the_most(most: int) -> None:
    tried: list[int] = []

    def fits(batch: int) -> bool:
        tried.append(batch)
        return True

    assert _search(fits, most, None).largest == most
    assert max(tried) == most


def test_a_step_spares_the_batches_within_it_and_changes_no_multiple() -> None:
    for limit in range(1, 300):
        tried: list[int] = []

        def fits(batch: int, limit: int = limit, tried: list[int] = tried) -> bool:
            tried.append(batch)
            return batch <= limit

        found = _last(fits, 60_000, 8)
        assert found is not None
        assert found == limit if limit < 8 else found // 8 == limit // 8 and found <= limit
        alone = len(tried)
        _last(fits, 60_000)
        assert alone <= len(tried) - alone


def test_spans_are_runs_of_neighbours() -> None:
    assert _spans([1, 2, 3, 7, 9, 10]) == ((1, 3), (7, 7), (9, 10))


def test_no_more_than_the_images_of_the_data_set_are_named_and_the_ladder_ends_there() -> None:
    found = fit_batch(case("mnist", "mlp"), Target.of(load_device("h200")))
    assert (found.largest_batch_size, found.ended_by, found.dataset_images) == (60_000, "images", 60_000)
    assert found.recommended_batch_size == 60_000
    assert found.ladder[-1].batch_size == 60_000
    assert found.searched_batch_sizes is None


def test_a_folder_with_a_few_images_ends_the_search(tmp_path: Path) -> None:
    from PIL import Image

    for part, count in (("train", 5), ("val", 2)):
        for label in ("a", "b"):
            (tmp_path / part / label).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8)).save(tmp_path / part / label / f"{number}.png")
    found = fit_batch(case("folder", "mlp", path=str(tmp_path)), Target.of(load_device("h200")))
    assert (found.largest_batch_size, found.ended_by) == (10, "images")
    assert [rung.batch_size for rung in found.ladder] == [10]
    assert found.recommended_batch_size == 8


@pytest.mark.parametrize("memory_mib", [112, 148])
def test_the_answer_is_what_trying_every_batch_finds(memory_mib: int) -> None:
    """On so little memory resnet18 fits again above batches that do not fit."""
    small, small_case = device(memory_mib << 20), case("cifar10", "resnet18")
    found = fit_batch(small_case, Target.of(small, workspaces=False))
    assert found.none_fits_from is not None and found.largest_fitting_batch_size is not None

    def fits(batch: int) -> bool:
        peaks = trace_peaks(
            replace(small_case, batch_size=batch),
            Target.of(small, workspaces=False),
            shared=True,
            capacity_bytes=memory_mib << 20,
        )
        return peaks.replay.out_of_memory is None

    tried = {batch: fits(batch) for batch in range(2, found.none_fits_from + 8)}  # batch norm refuses a batch of 1
    first_failure = min(batch for batch, held in tried.items() if not held)
    assert found.largest_batch_size == first_failure - 1
    assert found.largest_fitting_batch_size == max(batch for batch, held in tried.items() if held)
    missing = [batch for batch in range(2, found.largest_fitting_batch_size) if not tried[batch]]
    assert found.batch_sizes_that_do_not_fit == _spans(missing)
    assert found.largest_batch_size < found.largest_fitting_batch_size < found.none_fits_from


@pytest.mark.parametrize("memory_mib", [112, 300])
def test_what_a_search_tried_is_kept_and_another_replays_nothing(
    memory_mib: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_TRACE_CACHE", str(tmp_path))
    asked = case("cifar10", "resnet18"), Target.of(device(memory_mib << 20), workspaces=False), 0.8
    first = fit_batch(*asked)
    monkeypatch.setattr(fitting, "trace_events", lambda *_, **__: pytest.fail("a case was traced"))
    monkeypatch.setattr(fitting, "trace_peaks", lambda *_, **__: pytest.fail("a case was replayed"))
    assert fit_batch(*asked) == first


def test_a_batch_whose_tensors_alone_are_too_large_is_not_replayed() -> None:
    heard: list[int] = []
    found = fit_batch(case("cifar10", "resnet18"), Target.of(device(400 << 20), workspaces=False), heard=heard.append)
    assert found.none_fits_from is not None and found.ladder[-1].batch_size > found.none_fits_from
    assert max(heard) < found.none_fits_from


@pytest.mark.parametrize(("batch", "memory_mib"), [(16, 160), (128, 162), (128, 160)])
def test_only_a_replay_that_the_limit_left_alone_stands_for_one_without_limit(batch: int, memory_mib: int) -> None:
    """On 160 MiB a batch of 128 fits once cached blocks are released, and needs 162 MiB where they need not be."""
    tried, alone = (
        _Trial(
            case("cifar10", "resnet18"), Target.of(device(memory_mib << 20), workspaces=False), memory_mib << 20, int
        )
        for _ in range(2)
    )
    assert tried.fits(batch, 0)
    assert tried.free(batch) == alone.free(batch)


def test_not_even_one_image() -> None:
    found = fit_batch(case("mnist", "mlp"), Target.of(device(16 << 20, context_bytes=15 << 20)))
    assert (found.largest_batch_size, found.largest_fitting_batch_size, found.recommended_batch_size) == (None,) * 3
    less = fit_batch(case("mnist", "mlp"), Target.of(device(16 << 20, context_bytes=20 << 20)))
    assert (less.largest_batch_size, less.none_fits_from, less.ended_by) == (None, 1, "memory")


def test_a_few_images_that_the_model_cannot_train_on_are_below_the_limit_and_no_error() -> None:
    """Batch norm refuses a batch of 1, which is no hole in the memory."""
    found = fit_batch(case("cifar10", "resnet18"), Target.of(device(60 << 20), workspaces=False))
    assert (found.largest_batch_size, found.none_fits_from) == (None, 4)
    found = fit_batch(case("cifar10", "resnet18"), Target.of(device(108 << 20), workspaces=False))
    assert found.largest_batch_size is not None
    assert found.searched_batch_sizes is not None and found.searched_batch_sizes[0] == 1
    assert 1 < found.largest_batch_size <= found.searched_batch_sizes[1]


FOUND = {
    "largest_batch_size": 271,
    "largest_fitting_batch_size": 276,
    "memory_bytes": 24 << 30,
    "fraction": 0.8,
    "largest_batch_size_low": 271,
    "largest_batch_size_high": 271,
    "recommended_batch_size": 200,
    "ended_by": "memory",
    "dataset_images": 60_000,
    "batch_sizes_that_do_not_fit": [[272, 274]],
    "searched_batch_sizes": [255, 277],
    "none_fits_from": 278,
}


def test_the_answer_names_both_limits_and_what_was_not_tried() -> None:
    assert list(_answer(FOUND)) == [
        "largest batch up to which all fit in 24.0 GiB: 271",
        "memory is not monotonic here: the largest batch that fits at all is 276; 272 to 274 do not fit",
        "recommended at 80 %: 200",
    ]
    wide = {**FOUND, "largest_fitting_batch_size": 271, "batch_sizes_that_do_not_fit": [], "none_fits_from": 300}
    assert next(_answer(wide)) == "largest batch that fits in 24.0 GiB: 271"
    assert list(_answer(wide))[1] == "not all batches from 278 to 299 were tried; none from 300 up can fit"


def test_the_end_of_our_search_is_not_given_as_the_gpus() -> None:
    ended = {
        **FOUND,
        "largest_batch_size": 1 << 24,
        "largest_fitting_batch_size": 1 << 24,
        "ended_by": "search",
        "dataset_images": None,
    }
    assert list(_answer(ended))[:2] == [
        "a batch of 16,777,216 fits in 24.0 GiB, and more may",
        "the search ended there, below the GPU's limit",
    ]


@pytest.mark.parametrize(
    ("images", "recommended", "said"),
    [
        (60_000, 60_000, "60000, the size of the data set"),
        (1_281_167, 1_281_160, "1281160, the last multiple of 8 below the data set's 1,281,167 images"),
        (60_000, 40_000, "40000"),
    ],
)
def test_a_recommended_batch_is_called_all_images_only_where_it_is(images: int, recommended: int, said: str) -> None:
    ended = {"largest_batch_size": images, "largest_fitting_batch_size": images, "ended_by": "images"}
    found = {**FOUND, **ended, "dataset_images": images, "recommended_batch_size": recommended}
    assert list(_answer(found))[-1] == f"recommended at 80 %: {said}"


def test_the_command_says_that_more_than_all_images_fit() -> None:
    done = plugins.bench("fit", "--model", "mlp", "--dataset", "mnist", "--device", "h200")
    assert done.returncode == 0, done.stderr
    assert "all 60,000 images of the data set fit in 140 GiB" in done.stdout
    assert done.stdout.startswith("mlp on mnist, sgd, float32, contiguous, 28 px on h200\n")
    assert "recommended at 80 %: 60000, the size of the data set" in done.stdout
    assert "1048576" not in done.stdout
    done = plugins.bench("fit", "--model", "mlp", "--dataset", "cifar10", "--device", "h200", "--json")
    found = json.loads(done.stdout)
    assert (found["largest_batch_size"], found["recommended_batch_size"], found["ended_by"]) == (
        50_000,
        50_000,
        "images",
    )


@pytest.mark.slow
def test_a_case_of_torchvisions_that_fits_again_above_batches_that_do_not() -> None:
    found = fit_batch(case("imagenet", "efficientnet_b0", "sgd_momentum"), Target.of(load_device("rtx3090")))
    assert (found.largest_batch_size, found.largest_fitting_batch_size) == (271, 276)
    assert found.batch_sizes_that_do_not_fit == ((272, 274),)
