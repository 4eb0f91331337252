"""Which GPU: time, energy and cost of a placement, the order and what of it is unclear, and what makes it fast."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.cli.choose import markdown_lines, read_price_file, text_lines
from bench.devices import load_device
from bench.errors import BenchError, ConfigError, Unsupported
from bench.estimators import choosing, kept
from bench.estimators.choosing import POWER_SHARE, Bounded, Placement, Ranking, check_prices, list_gpus, place, rank
from bench.estimators.fitting import fit_batch
from bench.estimators.kept import NotKept, only_kept
from bench.estimators.memory import Target
from bench.records import Case, Choice

CASE = Case(Choice("cifar10"), Choice("resnet18"), Choice("sgd"), 16, precision="fp16")
ASKED: dict[str, Any] = {"fraction": 0.8, "workspaces": False}


def placed(device: str, rate: float, spread: float = 1.1, watts: float | None = 100.0, **more: Any) -> Placement:
    found = Placement(
        device,
        watts,
        8,
        "fits",
        1,
        2,
        3,
        3,
        3,
        0.5,
        rate,
        rate / spread,
        rate * spread,
        f"roofline on {device}, fitted",
    )
    return replace(found, **more)


def ranked(*placements: Placement, by: Any = "time", samples: int = 3600, prices: Any = None) -> Ranking:
    return rank(placements, by=by, samples=samples, fraction=0.8, prices=prices or {})


def test_time_energy_and_cost_of_a_gpu_with_their_ends() -> None:
    (offer,) = ranked(placed("a", 10.0, 1.25), prices={"a": 3.0}).offers
    assert offer.time_s == pytest.approx((360.0, 288.0, 450.0))
    assert offer.energy_j == pytest.approx(
        (360 * 100 * POWER_SHARE.point, 288 * 100 * POWER_SHARE.low, 450 * 100 * POWER_SHARE.high)
    )
    assert offer.cost == pytest.approx((0.3, 0.24, 0.375))
    assert POWER_SHARE.low < POWER_SHARE.point < POWER_SHARE.high < 1


def test_what_is_not_known_is_absent_and_not_zero() -> None:
    (offer,) = ranked(placed("a", 10.0, watts=None)).offers
    assert (offer.energy_j, offer.cost, offer.price_per_h) == (None, None, None)


@pytest.mark.parametrize(("by", "order"), [("time", "abc"), ("energy", "cab"), ("cost", "bca")])
def test_the_order_is_by_what_is_asked(by: Any, order: str) -> None:
    found = ranked(
        placed("a", 30.0, watts=700.0),
        placed("b", 20.0, watts=500.0),
        placed("c", 10.0, watts=70.0),
        by=by,
        prices={"a": 9.0, "b": 1.0, "c": 2.0},
    )
    assert "".join(offer.device for offer in found.offers) == order
    assert [offer.rank for offer in found.offers] == [1, 2, 3]


def test_gpus_whose_intervals_overlap_are_not_told_apart() -> None:
    found = ranked(placed("a", 100.0), placed("b", 50.0), placed("c", 48.0), placed("d", 42.0), placed("e", 10.0))
    ranks = {offer.device: offer.rank_words for offer in found.offers}
    assert ranks == {"a": "1", "b": "2–4", "c": "2–4", "d": "2–4", "e": "5"}
    alike = {offer.device: offer.unclear_with for offer in found.offers}
    assert alike == {"a": (), "b": ("c", "d"), "c": ("b", "d"), "d": ("b", "c"), "e": ()}
    assert (found.sentence, found.unclear_from) == ("a is the fastest", 2)


def test_a_wide_interval_spans_the_ranks_of_narrow_ones_that_are_clear_of_each_other() -> None:
    found = ranked(placed("a", 40.0, 1.01), placed("b", 30.0, 3.0), placed("c", 20.0, 1.01))
    assert {offer.device: offer.rank_words for offer in found.offers} == {"a": "1–2", "b": "1–3", "c": "2–3"}
    assert found.sentence == (
        "a is estimated to be the fastest, but cannot be told from b, whose interval overlaps with its own"
    )
    wide = ranked(*(placed(name, 10.0) for name in "abc"), by="energy")
    assert "most frugal, but cannot be told from 2 others, whose intervals overlap" in wide.sentence


def test_the_order_is_that_of_the_estimates_whatever_their_intervals() -> None:
    found = ranked(placed("a", 30.0, 3.0), placed("b", 20.0, 1.01), placed("c", 19.0, 4.0))
    assert "".join(offer.device for offer in found.offers) == "abc"


def test_one_gpu_or_none_is_said() -> None:
    assert ranked(placed("a", 1.0)).sentence == "a is the only GPU that can be ranked"
    assert ranked(Placement("a", reason="does not fit")).sentence == "no GPU can be ranked"


def test_who_has_no_place_is_left_out_with_the_reason() -> None:
    slow, frugal = placed("a", 10.0), placed("b", 10.0, watts=None)
    assert [(one.device, one.reason) for one in ranked(slow, frugal, by="energy").left_out] == [
        ("b", "no energy: power_limit_w is unknown")
    ]
    assert [one.reason for one in ranked(slow, frugal, by="cost", prices={"a": 1.0}).left_out] == [
        "no cost: no price is given"
    ]
    left = ranked(slow, Placement("z", reason="no bf16"), Placement("c", reason="does not fit")).left_out
    assert [(one.device, one.reason) for one in left] == [("c", "does not fit"), ("z", "no bf16")]


def test_text_and_markdown_have_the_ranks_the_interval_of_what_is_asked_and_what_it_rests_on() -> None:
    found = ranked(
        placed("a", 100.0, verdict="may not fit"),
        placed("b", 95.0),
        placed("c|d", 1.0),
        *(Placement(f"z{number}", reason=f"no speed on z{number}: unknown") for number in range(6)),
        by="cost",
        prices=dict.fromkeys(("a", "b", "c|d"), 1.0),
    )
    lines = [re.sub("\x1b\\[[0-9;]*m", "", line) for line in text_lines(found, "resnet18", 2)]
    assert lines[0] == "resnet18: 3,600 samples, estimated on 3 GPUs"
    head, first, second = (re.split(r"  +", line.strip()) for line in lines[2:5])
    assert head == ["rank", "GPU", "batch", "peak", "samples/s", "time", "energy", "cost", "90 % interval"]
    assert first == ["1–2", "a", "8?", "3 B", "100", "36.0 s", "3,040 J", "0.0100", "0.00909–0.0110"]
    assert second[:3] == ["1–2", "b", "8"]
    text = "\n".join(lines)
    assert "and 1 more: --top 3" in text
    assert "unclear from rank 1" in text
    assert "? at a batch: it may not fit" in text
    assert "samples/s: roofline, fitted" in text
    assert "ml-energy/zeus" in text
    assert "not ranked: z0, z1, z2, z3 and 2 more: no speed: unknown" in text
    table = [line for line in markdown_lines(found, "resnet18", 9) if line.startswith("|")]
    assert len(table) == 5
    assert all(line.count("|") - line.count("\\|") == 10 for line in table)


def test_every_fault_of_the_prices_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        check_prices(
            [("--price", "h20x", 3.0), ("--price", "h200", -1.0), ("p.toml: t4", "t4", True), ("x", "l4", "2")]
        )
    faults = raised.value.faults
    assert len(faults) == 4
    assert faults[0].startswith('--price: unknown device "h20x". Nearest: h20')
    assert "price of h200 must be a number above 0 for an hour, not -1.0" in faults[1]
    assert faults[2].startswith("p.toml: t4: ")
    own = replace(load_device("t4"), name="mine")
    assert check_prices([("", "NVIDIA H200", 3), ("", "h200", 4), ("", "mine", 1)], [own]) == {"h200": 4.0, "mine": 1.0}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.csv", "gpu,price\nh200,3\n", "lacks the column device"),
        ("p.csv", "", "lacks the column device and price"),
        ("p.toml", "h200 = ", "cannot be read"),
        ("p.txt", "h200 3", "must end in .toml or .csv"),
        ("p.csv", "device,price\n\xff".encode("latin-1"), "cannot be read"),
        ("missing.toml", None, "No such file"),
    ],
)
def test_a_file_of_prices_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, text: str | bytes | None, said: str
) -> None:
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=said) as raised:
        read_price_file(tmp_path / name)
    assert str(tmp_path / name) in str(raised.value)


def test_prices_come_from_toml_and_csv_with_their_places(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text('h200 = 3.4\n"NVIDIA L4" = 1\n')
    (tmp_path / "p.csv").write_text("price,device,note\n3.4,h200,spot\nfree,l4,\n")
    toml, table = (read_price_file(tmp_path / name) for name in ("p.toml", "p.csv"))
    assert [entry[1:] for entry in toml] == [("h200", 3.4), ("NVIDIA L4", 1)]
    assert [entry[1:] for entry in table] == [("h200", 3.4), ("l4", '"free"')]
    assert table[1][0].endswith("p.csv: line 3")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_TRACE_CACHE", str(tmp_path))
    forget()
    return tmp_path


def forget() -> None:
    kept.recording_of.cache_clear()
    kept._columns.clear()
    kept._recordings.clear()


@pytest.mark.parametrize("name", ["rtx3060", "h200"])
def test_the_batch_is_the_one_that_fit_recommends(cache: Path, name: str) -> None:
    device = load_device(name)
    found = place(CASE, device, **ASKED)
    fit = fit_batch(CASE, Target.of(device, workspaces=False))
    assert found.batch_size == fit.recommended_batch_size
    assert found.share_frac is not None
    assert 0.75 < found.share_frac <= 0.8 or found.batch_size == fit.dataset_images
    assert found.samples_per_s is not None and found.samples_per_s_low is not None
    assert found.samples_per_s_low < found.samples_per_s < (found.samples_per_s_high or 0)


def test_one_recording_serves_gpus_that_answer_alike_and_a_second_question_needs_none(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.estimators import record

    recorded: list[int] = []
    real = record.record_case

    def record_case(case: Case, machine: Any, **more: Any) -> Any:
        recorded.append(case.batch_size)
        return real(case, machine, **more)

    monkeypatch.setattr(record, "record_case", record_case)
    gpus = [load_device(name) for name in ("h200", "t4", "rtx3090", "b200")]
    first = {device.name: place(CASE, device, **ASKED) for device in gpus}
    assert recorded == [16, 48]
    forget()
    monkeypatch.setattr(choosing, "recommend_batch", lambda *_: pytest.fail("a search was made again"))
    with only_kept():
        assert {device.name: place(CASE, device, **ASKED) for device in gpus} == first
        monkeypatch.undo()
        monkeypatch.setenv("BENCH_TRACE_CACHE", str(cache))
        with pytest.raises(NotKept):
            place(replace(CASE, optimizer=Choice("adam")), gpus[0], **ASKED)


def test_attention_is_recorded_once_for_each_choice_of_kernels(cache: Path) -> None:
    from bench.estimators.recording import Asks, AttentionTraits

    case = replace(CASE, dataset=Choice("imagenet"), model=Choice("vit_b_16"))
    kinds = {name: kept.machine_of(load_device(name), Target.of(load_device(name)).settings) for name in ("h200", "t4")}
    for machine in kinds.values():
        assert kept.recording_of(case, machine).asks is Asks.ATTENTION
    assert len(list(cache.glob("*.trace"))) == 2
    assert AttentionTraits.of((8, 6)) == AttentionTraits.of((12, 0)) != AttentionTraits.of((9, 0))


def test_a_precision_that_the_gpu_lacks_is_said_and_nothing_is_recorded(cache: Path) -> None:
    found = place(replace(CASE, precision="bf16"), load_device("t4"), **ASKED)
    assert found == Placement("t4", 70.0, reason="no bf16: it needs compute capability 8.0, not 7.5")
    assert not list(cache.iterdir())


def test_a_missing_figure_leaves_the_others(cache: Path) -> None:
    lacking = replace(load_device("h200"), peak_fp16_flop_per_s=None)
    found = place(CASE, lacking, **ASKED)
    assert found.samples_per_s is None and found.batch_size is not None
    assert found.reason is not None and "peak_fp16_flop_per_s is unknown" in found.reason
    assert not ranked(found).offers


def test_where_no_batch_has_room_is_said(cache: Path) -> None:
    tiny = replace(load_device("t4"), memory_bytes=1 << 29)
    assert place(CASE, tiny, **ASKED).reason == "does not fit: no batch stays within 80 % of its memory"


def test_a_step_that_no_gpu_can_be_estimated_for_is_one_error() -> None:
    refused = replace(CASE, compile="true")
    with pytest.raises(Unsupported, match=r"torch\.compile is not modelled"):
        list(choosing.place_apart(refused, list_gpus()[:3], workers=1, timeout_s=60, **ASKED))


def test_every_gpu_of_the_package_is_listed_and_no_cpu() -> None:
    names = [gpu.name for gpu in list_gpus()]
    assert {"h200", "t4", "rtx4090"} <= set(names)
    assert "cpu" not in names


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"by": "cost"}, 'by="cost": needs prices'),
        ({"by": "speed"}, 'by="speed": one of time, energy, cost'),
        ({"devices": ["h200", "h200"]}, "two have the same name"),
        ({"prices": {"h200": 0}}, "must be a number above 0"),
        ({"samples": 0}, "samples: how many"),
        ({"fraction": 2.0}, "fraction 2"),
        ({"devices": ["h2000"]}, 'unknown device "h2000". Nearest: h200'),
    ],
)
def test_an_argument_that_is_not_valid_is_named_from_python(arguments: dict[str, Any], said: str) -> None:
    import bench

    with pytest.raises(BenchError, match=re.escape(said)):
        bench.choose("mlp", dataset="mnist", **arguments)


def test_the_callers_own_model_is_ranked_from_python(cache: Path) -> None:
    from torch import nn

    import bench

    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))

    found = bench.choose(build, sample_shape=(3, 32, 32), classes=10, samples=1000, devices=["h200", "t4"])
    assert {offer.device for offer in found.offers} == {"h200", "t4"}
    with pytest.raises(BenchError, match="samples: how many"):
        bench.choose(build, sample_shape=(3, 32, 32), classes=10, devices=["h200"])


def test_the_figure_has_a_line_for_each_gpu_and_is_the_same_each_time() -> None:
    from bench.report.choosing import draw_ranking
    from bench.report.drawing import render_drawing

    found = ranked(placed("a", 100.0), placed("b", 50.0), placed("c", 48.0))
    drawing = draw_ranking(found, "resnet18 $x^{$")
    assert list(drawing.numbers["device"]) == ["a", "b", "c"]
    assert list(drawing.numbers["time_s"]) == pytest.approx([36.0, 72.0, 75.0])
    texts = {text.get_text() for text in drawing.figure.findobj() if hasattr(text, "get_text")}
    assert {"a 1", "b 2–3", "told from all others", "overlaps with others"} <= texts
    assert "a is the fastest" in drawing.alt
    assert render_drawing(drawing, ".png") == render_drawing(draw_ranking(found, "resnet18 $x^{$"), ".png")
    for by in ("energy", "cost"):
        assert draw_ranking(ranked(placed("a", 1.0), by=by, prices={"a": 1.0}), "x").title.startswith(by.capitalize())


def test_ends_of_a_product_come_together() -> None:
    assert Bounded(2, 1, 4).times(Bounded(0.5, 0.25, 1)).times(2) == Bounded(2, 0.5, 8)
