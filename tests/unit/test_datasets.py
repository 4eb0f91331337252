"""Data sets as they are described, where they lie, and folders of one's own."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.catalog import describe_dataset, names, parse_choice
from bench.errors import DataError
from bench.folders import data_folder
from bench.records import Choice
from tests.unit.written_files import damage, write_tree


@pytest.mark.parametrize(
    ("name", "shape", "classes", "mean"),
    [
        ("mnist", (1, 28, 28), 10, (0.1307,)),
        ("fashion_mnist", (1, 28, 28), 10, (0.2860,)),
        ("cifar10", (3, 32, 32), 10, (0.5, 0.5, 0.5)),
        ("cifar100", (3, 32, 32), 100, (0.5071, 0.4865, 0.4409)),
        ("imagenet", (3, 224, 224), 1000, (0.485, 0.456, 0.406)),
        ("voc_segmentation", (3, 480, 480), 21, (0.485, 0.456, 0.406)),
    ],
)
def test_shape_classes_and_normalisation_are_the_documented_ones(name, shape, classes, mean):
    info = describe_dataset(Choice(name))
    assert (info.images.shape, info.images.classes, info.mean) == (shape, classes, mean)
    assert len(info.class_names) in (0, classes) and len(info.std) == shape[0]


def test_cifar10_goes_by_the_founding_documents_names():
    wanted = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    assert list(describe_dataset(Choice("cifar10")).class_names) == wanted


def test_describing_and_finding_data_sets_leaves_torch_unloaded():
    code = (
        "import sys; from pathlib import Path; from bench.catalog import names, describe_dataset, data_fetch;"
        "from bench.records import Choice;"
        "[describe_dataset(Choice(n)).on_disk(Path('/nowhere')) for n in names('dataset') if n != 'folder'];"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def test_every_data_set_of_the_documents_is_offered():
    assert {"mnist", "fashion_mnist", "cifar10", "cifar100", "imagenet", "folder"} <= set(names("dataset"))


def test_data_root_is_taken_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    assert data_folder() == tmp_path


def test_data_root_is_a_cache_folder_below_home(monkeypatch, tmp_path):
    monkeypatch.delenv("BENCH_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_folder() == tmp_path / ".cache/bench/data"


def test_account_without_home_has_a_data_root_all_the_same(monkeypatch):
    monkeypatch.delenv("BENCH_DATA", raising=False)
    monkeypatch.setattr(
        Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("Could not determine home directory."))
    )
    assert data_folder().name.startswith("bench-data-")


def test_folder_counts_classes_and_images_and_gives_rgb(tmp_path):
    write_tree(tmp_path, classes=("cat", "dog", "eel"))
    (tmp_path / ".cache").mkdir()
    info = describe_dataset(parse_choice("dataset", f"folder:{tmp_path}"))
    assert info.images.shape == (3, 224, 224) and info.class_names == ("cat", "dog", "eel") and info.train_samples == 9
    samples = info.open(Path("/nowhere"), True)
    assert len(samples) == 9 and {samples[at][0].mode for at in range(9)} == {"RGB"}
    assert [samples[at][1] for at in range(9)] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_grey_folder_gives_one_channel(tmp_path):
    from bench.workload.images import build_transform

    write_tree(tmp_path)
    info = describe_dataset(Choice.of("folder", {"path": str(tmp_path), "channels": 1}))
    assert info.images.channels == 1 and len(info.mean) == 1
    assert build_transform(info, 32)(info.open(tmp_path, True)[1][0]).shape == (1, 32, 32)


def test_divided_folder_gives_its_parts(tmp_path):
    write_tree(tmp_path / "train", count=4)
    write_tree(tmp_path / "val", count=1)
    info = describe_dataset(Choice.of("folder", {"path": str(tmp_path)}))
    assert (info.class_names, info.train_samples, info.test_samples) == (("cat", "dog"), 8, 2)
    assert [len(info.open(tmp_path, train)) for train in (True, False)] == [8, 2]


def test_class_called_train_divides_nothing(tmp_path):
    write_tree(tmp_path, classes=("bus", "train"))
    assert describe_dataset(Choice.of("folder", {"path": str(tmp_path)})).class_names == ("bus", "train")


@pytest.mark.parametrize(
    ("made", "told"),
    [((), "No such file"), (("root",), "no class folders"), (("root", "root/cat"), "no images in its 1 class folder")],
)
def test_folder_without_images_is_refused(tmp_path, made, told):
    for name in made:
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=told):
        describe_dataset(Choice.of("folder", {"path": str(tmp_path / "root")}))


def test_folder_without_path_says_how_to_write_it():
    with pytest.raises(DataError, match="folder:PATH"):
        describe_dataset(Choice("folder"))


def test_empty_class_folder_is_named(tmp_path):
    write_tree(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        describe_dataset(Choice.of("folder", {"path": str(tmp_path)})).open(tmp_path, True)


@pytest.mark.parametrize("change", [lambda content: content[: len(content) // 2], lambda content: b"no image"])
@pytest.mark.parametrize("name", ["1.jpg", "2.png"])
def test_image_that_cannot_be_decoded_is_named(tmp_path, name, change):
    write_tree(tmp_path)
    damage(tmp_path / "dog" / name, change)
    samples = describe_dataset(Choice.of("folder", {"path": str(tmp_path)})).open(tmp_path, True)
    with pytest.raises(DataError) as caught:
        samples[3 + int(name[0])]
    assert str(caught.value).startswith(f"{tmp_path / 'dog' / name}: ") and "\n" not in str(caught.value)


def test_imagenet_takes_its_images_from_a_folder(tmp_path):
    write_tree(tmp_path)
    info = describe_dataset(Choice.of("imagenet", {"folder": str(tmp_path)}))
    assert info.images.classes == 1000 and len(info.open(tmp_path, True)) == 6
    assert describe_dataset(Choice("imagenet")).open is None
