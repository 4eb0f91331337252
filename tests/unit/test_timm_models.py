"""Models of timm: names and sizes read from its source, settings, image sizes, and that nothing is downloaded."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

import bench
from bench import catalog
from bench.catalog.models import timm as family_of_timm
from bench.comparison.differences import COMPARED
from bench.errors import BenchError, ConfigError, Unsupported
from bench.estimators import kept
from bench.records import AXES, Case, Choice, Environment, ImageSpec, Measurement, Planned, Protocol, Status
from bench.store import Store
from bench.sweep.journal import Journal
from tests import plugins

pytestmark = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")


def square(side: int, channels: int = 3, classes: int = 10) -> ImageSpec:
    return ImageSpec(channels, side, side, classes)


def test_names_sizes_and_which_are_fixed_are_those_of_the_installed_timm() -> None:
    import timm
    from timm.models import _registry

    listed = {name.removeprefix("timm:") for name in catalog.names("model") if name.startswith("timm:")}
    assert listed == set(timm.list_models())
    for name in sorted(listed):
        expected = _registry._model_pretrained_cfgs[name]
        found = family_of_timm.inputs_of(_registry._model_to_module[name])[name]
        assert (found.channels, found.side) == expected.input_size[:2], name
        assert found.fixed == expected.fixed_input_size, name


def test_of_several_configurations_the_size_is_that_of_timms_default(monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
from timm.data import MEAN
from ._registry import generate_default_cfgs, register_model

def _cfg(url: Unknown = "", **more):
    return {"url": url, "input_size": (3, 224, 224), "mean": MEAN, **more}

_large = {"input_size": (3, 384, 384)}
default_cfgs = generate_default_cfgs({
    "one.untrained": _cfg(**_large), "one.first": _cfg("x"), "one.second": _cfg("x", **_large),
    "two.first": _cfg("x"), "two.second*": _cfg("x", fixed_input_size=True, **_large),
})
for name in ("one",):
    default_cfgs[name.replace("one", "three")] = default_cfgs["one.second"]
raise SystemExit("nothing else of the file is run")
"""
    monkeypatch.setattr(family_of_timm, "_source", lambda family: source)
    found = family_of_timm.inputs_of.__wrapped__("made_up")
    assert {name: (own.side, own.fixed) for name, own in found.items()} == {
        "one": (224, False),
        "two": (384, True),
        "three": (384, False),
    }


def test_listing_and_planning_import_neither_torch_nor_timm() -> None:
    code = (
        "import sys; from bench import catalog; from bench.plan import default_side; "
        "model = catalog.parse_choice('model', 'timm:vit_tiny_patch16_384:drop_path_rate=0.1'); "
        "print(default_side(catalog.parse_choice('dataset', 'mnist'), model), 'torch' in sys.modules, 'timm' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["384", "False", "False"]


def test_name_has_its_prefix_and_settings_follow() -> None:
    choice = catalog.parse_choice("model", "timm:resnet50d:drop_path_rate=0.1")
    assert choice == Choice.of("timm:resnet50d", {"drop_path_rate": 0.1})
    assert str(choice) == "timm:resnet50d:drop_path_rate=0.1"
    assert catalog.parse_choice("model", str(choice)) == choice


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("timm:resnte50d", ("timm:resnte50d", "Nearest: timm:resnet50d")),
        ("convnextv2_tiny", ("Nearest: timm:convnextv2_tiny",)),
        ("timm:resnet50.a1_in1k", ("a1_in1k", "write timm:resnet50")),
        ("timm:resnet50:drop_pth_rate=0.1", ("drop_pth_rate", "Nearest: drop_path_rate")),
        ("timm:resnet50:num_classes=3", ("num_classes", "data set")),
        ("timm:resnet50:pretrained=true", ("pretrained", "no weights are loaded")),
        ("timm:vit_tiny_patch16_224:img_size=96", ("img_size", "set image_size")),
        ("timm:resnet50:drop_rate", ("drop_rate", "not a setting")),
        ("timm:*resnte*d", ("no model matches", "Nearest: timm:resnet")),
    ],
)
def test_wrong_names_and_settings_are_answered_with_what_to_write(text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(BenchError) as caught:
        catalog.parse_choices("model", text)
    assert [word for word in words if word not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


def test_without_timm_its_names_are_not_listed_and_the_error_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(family_of_timm, "_folder", lambda: None)
    assert family_of_timm.load_entries() == ()
    assert "pip install 'stepbench[timm]'" in (family_of_timm.note_on_listing() or "")
    for text in ("timm:resnet50000", "timm:*"):
        monkeypatch.setattr(catalog, "names", lambda kind: ["resnet18"])
        with pytest.raises(BenchError, match=r"timm is not installed; pip install 'stepbench\[timm\]'"):
            catalog.parse_choices("model", text)


def test_patterns_are_expanded_in_the_order_of_the_catalog_and_keep_their_settings() -> None:
    found = [str(choice) for choice in catalog.parse_choices("model", "timm:resnet??d:drop_rate=0.1")]
    assert found == [f"timm:resnet{depth}d:drop_rate=0.1" for depth in (18, 26, 34, 50)]
    assert [choice.name for choice in catalog.parse_choices("model", "resnet*")] == sorted(
        name for name in catalog.names("model") if name.startswith("resnet")
    )


def test_patterns_in_a_grid_are_planned_by_name_each_once() -> None:
    from bench.config import check_config

    grid = {"dataset": "mnist", "model": ["resnet1?", "resnet*"], "optimizer": "sgd", "batch_size": 8}
    checked = check_config({"name": "n", "grid": grid}, "c.toml")
    assert [choice.name for choice in checked.grid.model][:2] == ["resnet18", "resnet101"]
    assert len(set(checked.grid.model)) == len(checked.grid.model) == 5
    grid["model"] = {"name": "timm:resnet1?d", "drop_rate": 0.1}  # type: ignore[assignment]
    checked = check_config({"name": "n", "grid": grid}, "c.toml")
    assert checked.as_json()["grid"]["model"] == ["timm:resnet18d:drop_rate=0.1"]
    grid["model"] = ["mlp", "xyzzy*"]
    with pytest.raises(ConfigError, match=r'c\.toml: grid\.model\[1\]: no model matches "xyzzy\*"'):
        check_config({"name": "n", "grid": grid}, "c.toml")


def sizes_planned(model: str, **axes: object) -> list[int]:
    from bench.plan import cross_axes

    given = {"model": model, "dataset": "cifar10", "optimizer": "sgd", "batch_size": 2, **axes}
    crossed = {
        axis: [catalog.parse_choice(axis, str(value)) if axis in catalog.KINDS else value]  # type: ignore[arg-type]
        for axis, value in given.items()
    }
    assert set(crossed) <= set(AXES)
    return [case.image_size for case in cross_axes(crossed, "cpu")]


def test_a_case_without_an_image_size_has_the_models_own_and_one_with_it_keeps_it() -> None:
    assert sizes_planned("timm:vit_tiny_patch16_384") == [384]
    assert sizes_planned("timm:vit_tiny_patch16_384", image_size=64) == [64]
    assert sizes_planned("resnet18") == [32]


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
@pytest.mark.parametrize("images", [square(32, channels=1, classes=7), square(64)], ids=["grey", "colour"])
def test_models_have_the_channels_and_classes_of_the_data_set_and_any_size(
    name: str, images: ImageSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    model = catalog.model(f"timm:{name}").build(images, drop_path_rate=0.1)
    assert model(torch.zeros(2, *images.shape)).shape == (2, images.classes)


def test_a_size_that_a_model_cannot_take_is_refused_with_the_size_to_set() -> None:
    entry, images = catalog.model("timm:crossvit_9_240"), square(32)
    model = entry.build(images)
    with pytest.raises(RuntimeError) as caught:
        model(torch.zeros(2, *images.shape))
    reason = entry.refuse_error(images, {}, caught.value)
    assert reason is not None and "timm:crossvit_9_240 cannot take images of 32 x 32; set image_size" in reason
    assert "240" in reason
    assert entry.refuse_error(square(240), {}, caught.value) is None  # at its own size it is a failure
    assert entry.refuse_error(images, {}, RuntimeError("CUDA error: bad size")) is None


def test_the_formula_refuses_a_size_with_the_same_reason_as_the_step() -> None:
    from bench.estimators.formula import estimate_formula

    case = Case(Choice("cifar10"), Choice("timm:crossvit_9_240"), Choice("sgd"), 2, image_size=32)
    with pytest.raises(
        Unsupported, match=r"cannot take images of 32 x 32; set image_size, for example 240.*\(crossvit\.py:"
    ):
        estimate_formula(case)


def test_a_setting_that_the_constructor_does_not_know_is_refused_by_name() -> None:
    with pytest.raises(Unsupported, match='timm:test_resnet has no argument "base_width_of_nothing"'):
        catalog.model("timm:test_resnet").build(square(32), base_width_of_nothing=3)


def test_an_encoder_is_refused_and_a_model_published_without_a_classifier_gets_one() -> None:
    features = catalog.model("timm:mobilenetv5_300m_enc")
    with torch.device("meta"), pytest.raises(Unsupported, match="timm:mobilenetv5_300m_enc has no classifier"):
        features.build(square(224))
    with torch.device("meta"):
        assert catalog.model("timm:vit_small_patch14_dinov2").build(square(224)).num_classes == 10


def test_the_version_of_timm_is_part_of_the_key_and_of_no_other_models(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("timm:resnet18", "resnet18")
    before = [catalog.code_key("model", name) for name in names]
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0")
    catalog._code_key.cache_clear()
    after = [catalog.code_key("model", name) for name in names]
    monkeypatch.undo()
    catalog._code_key.cache_clear()
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_python_takes_a_name_of_timm_and_refuses_patterns_and_files() -> None:
    found = bench.estimate("timm:test_resnet", dataset="cifar10", batch_size=2, image_size=32)
    assert found.formula_bytes and found.trace_peak_allocated_bytes
    with pytest.raises(BenchError, match=r"model: matches 5 names .* give one"):
        bench.estimate("resnet*", dataset="cifar10")
    with pytest.raises(BenchError, match="from Python, give the callable itself"):
        bench.fit("my_models.py:build")


GREY, SMALL = square(512, channels=1), square(64)
FIXED, CHANNELS, EVERY = "timm:efficientformer_l1", "timm:csatv2", "timm:test_resnet"


@pytest.mark.parametrize(
    ("model", "images", "words"),
    [
        (FIXED, SMALL, ("cannot take images of 64 x 64; set image_size, for example 224",)),
        (CHANNELS, GREY, ("cannot take images of 512 x 512 with 1 channel; choose a data set of 3 channels",)),
        (CHANNELS, square(64, channels=1), ("64 x 64 with 1 channel", "512", "3 channels")),
        (EVERY, SMALL, ()),
    ],
)
def test_a_trial_says_why_a_model_cannot_take_images_and_is_kept(
    model: str, images: ImageSpec, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_TRACE_CACHE", str(tmp_path))
    kept.shapes_of.cache_clear()
    reason = kept.refusal_of(Choice(model), images)
    assert bool(words) == bool(reason)
    assert [word for word in words if word not in str(reason)] == []
    kept.shapes_of.cache_clear()
    with kept.only_kept():
        assert kept.refusal_of(Choice(model), images) == reason


def test_only_images_that_are_not_a_models_own_are_tried() -> None:
    entry = catalog.model(FIXED)
    assert [entry.is_tried(images) for images in (square(224), square(64), square(224, channels=1))] == [
        False,
        True,
        True,
    ]
    assert not catalog.model("resnet18").is_tried(SMALL)


def test_a_plan_skips_what_trials_refuse_each_model_and_size_tried_once() -> None:
    from bench.config import check_config
    from bench.plan import Trial, build_plan

    asked: list[Trial] = []

    def try_models(trials: Sequence[Trial]) -> dict[Trial, str]:
        asked.extend(trials)
        return {trial: "too small" for trial in trials if trial[0].name == FIXED}

    grid = {"dataset": "cifar10", "model": [FIXED, EVERY, "mlp"], "optimizer": "sgd", "batch_size": [2, 4]}
    config = check_config({"name": "n", "grid": {**grid, "image_size": [64, 224]}}, "c.toml")
    plan = build_plan(config, "cpu", try_models)
    assert {(str(model), images.height) for model, images in asked} == {(FIXED, 64), (EVERY, 64), (EVERY, 224)}
    assert len(asked) == 3
    assert {(str(run.case.model), run.case.image_size) for run in plan if run.skip_reason} == {(FIXED, 64)}


def test_a_models_refusal_is_found_in_a_child_and_shown_by_plan_and_sweep(tmp_path: Path) -> None:
    configuration = tmp_path / "c.toml"
    configuration.write_text(
        f'name = "n"\n[grid]\ndataset = "cifar10"\nmodel = ["{FIXED}"]\noptimizer = "sgd"\nbatch_size = 2\nimage_size = 64\n'
    )
    environment = {**os.environ, "BENCH_TRACE_CACHE": str(tmp_path / "kept"), "BENCH_LOCK_DIR": str(tmp_path)}
    shown = plugins.bench("plan", configuration, "--device", "cpu", env=environment)
    assert "skipped: timm:efficientformer_l1 cannot take images of 64 x 64" in shown.stdout, shown.stderr
    assert "trying 1 model" in shown.stderr
    sweep = plugins.bench("sweep", configuration, "--out", tmp_path / "out", "--device", "cpu", env=environment)
    (row,) = bench.load(tmp_path / "out").to_dict("records")
    assert row["status"] == "skipped", sweep.stderr
    assert "cannot take images of 64 x 64" in row["reason"]
    assert "trying" not in sweep.stderr  # the trial is kept


def test_all_models_are_listed_by_family_and_with_a_pattern_or_as_json_by_name() -> None:
    listed = plugins.bench("list", "models").stdout.splitlines()
    families = [line for line in listed if line.startswith("timm, ")]
    names = [name for name in catalog.names("model") if name.startswith("timm:")]
    assert sum(int(line.split()[2]) for line in families) == len(names)
    assert not any(line.startswith("timm:") for line in listed)
    assert any(line.startswith("resnet18 ") for line in listed)
    assert listed[-1].startswith(f"{len(names):,} models in {len(families)} families")
    vits = plugins.bench("list", "models", "timm:test_vit*").stdout.splitlines()
    assert [line.split()[0] for line in vits] == [name for name in names if name.startswith("timm:test_vit")]
    everything = json.loads(plugins.bench("list", "models", "--json").stdout)
    assert [row["name"] for row in everything] == catalog.names("model")


def test_rows_have_timms_version_where_the_model_is_timms(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create()
    environment = Environment(device="cpu", timm_version="1.0.31")
    journal = Journal(store, Protocol(), environment)
    for name in (EVERY, "resnet18"):
        case = Case(Choice("cifar10"), Choice(name), Choice("sgd"), 2)
        journal.write(Planned(case, 0, 0, code_key=name), 0, Measurement(status=Status.OK))
    rows = [pq.read_table(path).to_pylist()[0] for path in store.runs_folder.glob("*.parquet")]
    assert {row["model"]: row["timm_version"] for row in rows} == {EVERY: "1.0.31", "resnet18": None}
    assert environment.key == replace(environment, timm_version=None).key  # the key of the code has it
    assert COMPARED["timm_version"] == "environment"
