"""What makes a batch fit: the ways that are tried, the best of them, the sentence and what each gives up."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from bench.cli.saving_text import MOST_OTHERS, saving_lines, saving_value, verified_lines
from bench.errors import Unsupported
from bench.estimators.saving import (
    MOST_MICRO_BATCHES,
    Option,
    Saving,
    Way,
    choose,
    label_of,
    list_more_ways,
    list_ways,
    pareto_set,
    what_it_gives_up,
)
from bench.records import Case, Choice, Estimate
from bench.units import GIB

CASE = Case(Choice("cifar10"), Choice("resnet18"), Choice("adam"), 64, image_size=32)

BLOCKS: Way = {"checkpointing": "blocks"}
UPDATE: Way = {"update": "in_backward"}
EXPANDABLE: Way = {"allocator": "expandable"}
BF16: Way = {"precision": "bf16"}


def split(count: int) -> Way:
    return {"accumulation": count}


Seen = tuple[Way, float, float | None]
"""A way, its device memory in GiB, its samples/s."""


def saving(seen: Sequence[Seen], memory_gib: float = 10, may_not_fit: Sequence[Way] = (), **options: Any) -> Saving:
    """The answer of made-up estimates; what is larger than the memory does not fit."""
    ways = {replace(CASE, **way): way for way, _, _ in seen}  # type: ignore[arg-type]
    made = []
    for case, (way, gib, rate) in zip(ways, seen, strict=True):
        size = int(gib * GIB)
        verdict = "may not fit" if way in may_not_fit else "fits" if gib <= memory_gib else "does not fit"
        made.append(
            Estimate(
                case_key=case.key,
                estimate_device="x",
                trace_peak_allocated_bytes=size - GIB // 2,
                trace_peak_reserved_bytes=size - GIB // 4,
                estimated_device_bytes=size,
                estimated_fit=verdict,
                estimated_samples_per_s=rate,
            )
        )
    return choose(ways, made, int(memory_gib * GIB), **options)


def labels(options: Sequence[Option]) -> list[str]:
    return [option.label for option in options]


def test_the_switches_are_tried_alone_and_together_and_the_step_as_it_is_first() -> None:
    ways = list(list_ways(CASE).values())
    assert ways[0] == {}
    for way in (BLOCKS, UPDATE, EXPANDABLE, split(2), split(4), BLOCKS | UPDATE, split(4) | BLOCKS, BF16):
        assert way in ways
    assert split(4) | BLOCKS | EXPANDABLE in ways
    assert len(ways) == len({label_of(way) for way in ways})
    assert not any("accumulation" in way and "update" in way for way in ways)  # which the plan refuses


def test_axes_that_the_user_named_are_kept() -> None:
    kept = list_ways(replace(CASE, checkpointing="blocks", precision="bf16"), {"checkpointing", "precision"})
    assert {axis for way in kept.values() for axis in way} == {"accumulation", "update", "allocator"}
    assert {case.checkpointing for case in kept} == {"blocks"}
    without = list_ways(CASE, {"memory_format"})
    assert {axis for way in without.values() for axis in way} >= {"precision"}
    assert not any("memory_format" in way for way in without.values())


def test_ways_that_the_plan_refuses_are_left_out() -> None:
    odd = list_ways(replace(CASE, batch_size=6))
    assert {way.get("accumulation") for way in odd.values()} == {None, 2}  # 4 does not divide 6
    single = list_ways(replace(CASE, batch_size=4))
    assert {way.get("accumulation") for way in single.values()} == {None, 2}  # batch norm needs two values per channel


def test_the_pareto_set_is_what_nothing_beats_from_the_fastest_to_the_smallest() -> None:
    found = saving([({}, 8, 100), (BLOCKS, 4, 80), (UPDATE, 7, 99), (split(2), 5, 70), (split(4), 3, 60)])
    assert labels(found.pareto) == ["as it is", "update in the backward", "checkpointed blocks", "4 micro-batches"]
    assert labels(found.others) == ["2 micro-batches"]


def test_a_saving_that_is_within_the_error_of_the_estimate_is_not_worth_a_switch() -> None:
    found = saving([({}, 8, 100), (EXPANDABLE, 7.9, 100), (BLOCKS, 4, 80), (BLOCKS | EXPANDABLE, 3.7, 80)])
    assert labels(found.pareto) == ["as it is", "checkpointed blocks", "checkpointed blocks, expandable segments"]


def test_of_equally_fast_ways_the_one_with_the_fewest_changes_counts() -> None:
    options = saving([({}, 20, 100), (BLOCKS | EXPANDABLE, 4, 80), (BLOCKS, 4, 80)]).tried
    assert labels(pareto_set(options[1:])) == ["checkpointed blocks"]


def test_another_precision_stands_apart_and_is_not_the_cheapest_while_a_switch_fits() -> None:
    found = saving([({}, 12, 100), (BLOCKS, 6, 80), (BF16, 7, 190)])
    assert labels(found.pareto) == ["checkpointed blocks"]
    assert labels(found.other_precisions) == ["bf16"]
    assert found.sentence == (
        "Cheapest way to fit: checkpointed blocks, 6.00 GiB of 10.0 GiB (60 %), 80.0 samples/s (-20.0 %); computes the "
        "blocks twice."
    )


def test_what_fits_as_it_is_needs_nothing() -> None:
    found = saving([({}, 8, 100), (BF16, 5, 190)])
    assert found.sentence == "It fits as it is: 8.00 GiB of 10.0 GiB (80 %), 100 samples/s."
    assert found.missing_bytes == 0


def test_the_cheapest_way_loses_the_least_speed_and_changes_the_least() -> None:
    found = saving([({}, 12, 100), (split(2), 7, 94.9), (BLOCKS, 6, 80), (split(2) | EXPANDABLE, 6.9, 95)])
    assert found.cheapest is not None
    assert found.cheapest.label == "2 micro-batches"


def test_what_fits_for_sure_comes_before_what_may_not_fit() -> None:
    seen: list[Seen] = [({}, 12, 100), (EXPANDABLE, 9.9, 100), (BLOCKS, 6, 80)]
    sure = saving(seen, may_not_fit=[EXPANDABLE])
    assert sure.cheapest is not None
    assert (sure.cheapest.label, labels(sure.pareto)) == (
        "checkpointed blocks",
        ["expandable segments", "checkpointed blocks"],
    )
    doubtful = saving(seen[:2], may_not_fit=[EXPANDABLE])
    assert doubtful.sentence.endswith("It may not fit: nothing that was tried fits for sure.")


def test_a_step_as_it_is_that_may_not_fit_is_not_said_to_fit() -> None:
    doubtful = saving([({}, 11, 100), (EXPANDABLE, 10.5, 90)], may_not_fit=[{}, EXPANDABLE])
    assert doubtful.sentence == (
        "It may fit as it is: 11.0 GiB of 10.0 GiB (110 %), 100 samples/s; nothing that was tried fits for sure."
    )
    assert "these may fit too" in list(saving_lines(doubtful))


def test_the_table_shows_what_the_speeds_are_compared_with() -> None:
    lines = list(saving_lines(saving([({}, 12, 100), (BLOCKS, 6, 80)])))
    row = lines.index("compared with") + 1
    assert re.fullmatch(r"  as it is +12\.0 GiB +120 % +100 +does not fit", lines[row])
    assert "compared with" not in list(saving_lines(saving([({}, 8, 100), (BLOCKS, 6, 80)])))


def test_if_only_another_precision_fits_the_sentence_says_so() -> None:
    found = saving([({}, 20, 100), (BLOCKS, 12, 80), (BF16, 9, 190)])
    assert found.sentence.startswith("Only another precision or memory format fits: bf16, 9.00 GiB of 10.0 GiB (90 %)")
    assert found.pareto == ()


def test_if_nothing_fits_the_nearest_is_named_with_what_is_missing() -> None:
    found = saving([({}, 20, 100), (BLOCKS, 12, 80), (BF16, 14, 190)])
    assert found.cheapest is None
    assert found.missing_bytes == 2 * GIB
    assert found.sentence == (
        "Nothing that was tried fits. Nearest: checkpointed blocks, 12.0 GiB of 10.0 GiB (120 %), 80.0 samples/s "
        "(-20.0 %); 2.00 GiB are missing."
    )
    assert list(saving_lines(found)) == ["3 ways tried; the peak is what the driver reports, with the CUDA context"]


def test_a_device_without_figures_of_speed_is_answered_by_memory_alone() -> None:
    found = saving([({}, 12, None), (BLOCKS, 6, None), (split(4), 5, None), (split(4) | BLOCKS, 3, None)])
    assert found.sentence.startswith("Cheapest way to fit: 4 micro-batches, 5.00 GiB of 10.0 GiB (50 %); ")
    assert found.cheapest is not None
    assert found.cheapest.speed_ratio is None


def test_more_micro_batches_are_tried_while_they_can_still_make_it_fit() -> None:
    near = saving([({}, 30, 100), (split(2), 20, 99), (split(4), 15, 98), (BLOCKS, 9, 80)])
    assert list(list_more_ways(near).values()) == [split(8), split(8) | EXPANDABLE]
    assert not list_more_ways(near, {"accumulation"})
    hopeless = saving([({}, 30, 100), (split(2), 20, 99), (split(4), 16, 98), (BLOCKS, 9, 80)])
    assert not list_more_ways(hopeless)  # 6 GiB are missing, and all further ones save 4 at most
    enough = saving([({}, 30, 100), (split(2), 16, 99), (split(4), 9, 98)])
    assert not list_more_ways(enough)


def test_more_micro_batches_of_checkpointed_blocks_are_tried_only_where_nothing_else_fits() -> None:
    seen: list[Seen] = [({}, 40, 100), (split(2), 39, 99), (BLOCKS, 20, 80), (split(2) | BLOCKS, 15, 79)]
    assert list(list_more_ways(saving(seen)).values()) == [split(4) | BLOCKS, split(4) | BLOCKS | EXPANDABLE]
    assert not list_more_ways(saving([*seen, (EXPANDABLE, 9, 100)]))


def test_the_search_for_micro_batches_ends() -> None:
    last = MOST_MICRO_BATCHES
    found = saving([({}, 99, 100), (split(last // 2), 60, 50), (split(last), 12, 40)])
    assert not list_more_ways(found)


def test_what_each_change_gives_up_is_said_in_words() -> None:
    case = replace(CASE, accumulation=4, checkpointing="blocks", update="in_backward", precision="bf16")
    assert what_it_gives_up(case, "accumulation", batch_norm=True) == "batch norm sees 16 samples at a time, not 64"
    assert what_it_gives_up(case, "accumulation") == "4 smaller forwards and backwards"
    assert what_it_gives_up(case, "checkpointing") == "computes the blocks twice"
    assert "running statistics" in what_it_gives_up(case, "checkpointing", batch_norm=True)
    assert "no clipping by the global norm" in what_it_gives_up(case, "update")
    assert what_it_gives_up(case, "precision") == "bf16 autocast: another precision"


def test_a_step_that_cannot_be_traced_is_refused_with_its_reason() -> None:
    with pytest.raises(Unsupported, match="reads values"):
        choose({CASE: {}}, [Estimate(case_key=CASE.key, estimate_device="x", estimate_note="reads values")], GIB)


def test_a_way_that_cannot_be_estimated_is_named_with_its_reason() -> None:
    plain = saving([({}, 8, 100)]).plain
    made = Estimate(
        case_key=CASE.key,
        estimate_device="x",
        trace_peak_allocated_bytes=1,
        trace_peak_reserved_bytes=1,
        estimated_device_bytes=plain.device_bytes,
        estimated_fit="fits",
    )
    other = replace(CASE, checkpointing="blocks")
    note = "no formula for a checkpointed model: it does not know what the blocks save; MLP has no repeated blocks"
    lost = Estimate(case_key=other.key, estimate_device="x", estimate_note=note)
    found = choose({CASE: {}, other: BLOCKS}, [made, lost], GIB)
    assert found.unknown == {"checkpointed blocks": "MLP has no repeated blocks"}
    assert "not estimated: checkpointed blocks: MLP has no repeated blocks" in list(saving_lines(found))


def test_the_answer_takes_one_screen_and_has_the_trade_offs_first() -> None:
    ways: list[Seen] = [({}, 9, 100), (BLOCKS, 4, 80), (BF16, 5, 190)]
    ways += [(split(2**n), 8.9 - n / 100, 99 - n) for n in range(1, 6)]
    ways += [(split(2**n) | BLOCKS, 3.9 - n / 100, 79 - n) for n in range(1, 6)]
    found = saving(ways)
    lines = list(saving_lines(found))
    assert len(lines) < 40
    assert max(map(len, lines)) <= 120
    heads = [line for line in lines if not line.startswith(" ")]
    assert heads[0].startswith("best trade-offs")
    assert heads[1:4] == ["these fit too", "another precision or memory format", "what they give up"]
    assert f"  and {len(found.others) - MOST_OTHERS} more (--json)" in lines
    assert any(" ".join(line.split()) == "checkpointed blocks 4.00 GiB 40 % 80.0 -20.0 %" for line in lines)
    value = saving_value(found, "x")
    assert [option["label"] for option in value["pareto"]] == labels(found.pareto)
    assert len(value["tried"]) == len(ways)
    assert value["cheapest"]["case_key"] == CASE.key


def test_real_runs_stand_beside_their_estimates() -> None:
    found = saving([({}, 9, 100), (BLOCKS, 4, 80)])
    runs = [
        {"label": "as it is", "status": "oom", "reason": "no room", "peak_reserved_bytes": None, "samples_per_s": None},
        {
            "label": "checkpointed blocks",
            "status": "ok",
            "reason": None,
            "peak_reserved_bytes": 4 * GIB - GIB // 4,
            "samples_per_s": 100.0,
        },
    ]
    assert list(verified_lines(found, runs)) == [
        "verified with 2 runs (error of the estimate)",
        "  as it is            oom: no room",
        "  checkpointed blocks  3.75 GiB reserved (+0.0 %), 100 samples/s (-20.0 %)",
    ]
    assert list(verified_lines(found, [])) == ["verified: nothing to run, since nothing fits"]
