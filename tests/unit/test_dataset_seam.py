"""Adding a data set is one new file in the folder of its kind, and no list."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import bench.catalog.datasets
from bench import catalog
from bench.config import check_config
from bench.plan import build_cases, image_spec
from bench.records import Choice, Protocol

FILE = '''"""Two kinds of stripes, made on the spot."""

from bench.catalog.entries import DatasetEntry, DatasetInfo
from bench.records import ImageSpec


class Stripes:
    def __len__(self):
        return 20

    def __getitem__(self, index):
        from PIL import Image

        return Image.new("L", (12, 12), color=255 * (index % 2)), index % 2


def describe(*, classes: int = 2) -> DatasetInfo:
    return DatasetInfo(
        images=ImageSpec(1, 12, 12, classes), class_names=("dark", "light"), mean=(0.5,), std=(0.5,),
        train_samples=20, test_samples=20, on_disk=lambda root: True, open=lambda root, train: Stripes(),
    )


ENTRIES = (DatasetEntry("stripes", describe, "two kinds of stripes"),)
'''


@pytest.fixture
def stripes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Choice]:
    (tmp_path / "stripes.py").write_text(FILE, encoding="utf-8")
    monkeypatch.setattr(bench.catalog.datasets, "__path__", [*bench.catalog.datasets.__path__, str(tmp_path)])
    catalog._modules.cache_clear()
    catalog.entries.cache_clear()
    yield Choice("stripes")
    monkeypatch.undo()
    catalog._modules.cache_clear()
    catalog.entries.cache_clear()


def test_one_new_file_is_a_data_set_that_can_be_named_planned_and_loaded(stripes: Choice) -> None:
    from bench.workload.inputs import build_inputs

    assert "stripes" in catalog.names("dataset")
    assert catalog.parse_choice("dataset", "stripes:classes=5") == Choice.of("stripes", {"classes": 5})
    grid = {"dataset": "stripes", "model": "mlp", "optimizer": "sgd", "batch_size": 4, "input": "loader"}
    ((case, reason),) = build_cases(check_config({"name": "n", "grid": grid}, "test"), "cpu").items()
    assert reason is None
    assert image_spec(stripes, 0).shape == (1, 12, 12)
    protocol = Protocol(loader_workers=0)
    with build_inputs(case, catalog.describe_dataset(stripes), protocol, torch.device("cpu")) as inputs:
        images, labels = next(inputs)
    assert inputs.data_source == "files"
    assert images.shape == (4, 1, 12, 12)
    assert torch.equal(images.amax(dim=(1, 2, 3)), labels * 2.0 - 1.0)  # dark is -1, light is +1, normalised
