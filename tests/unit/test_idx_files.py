"""idx files, plain and gzipped: read to the byte; damaged ones refused with what is wrong."""

import gzip

import numpy as np
import pytest

from bench.catalog import describe_dataset, idx_files
from bench.errors import DataError
from bench.records import Choice
from tests.unit.written_files import damage, grey_images, idx_bytes, pixels, write_idx

DEBIAN = idx_files.DEBIAN_FOLDERS["FashionMNIST"]


@pytest.fixture(autouse=True)
def no_debian_package(monkeypatch):
    monkeypatch.setattr(idx_files, "DEBIAN_FOLDERS", {})


@pytest.mark.parametrize("gzipped", [False, True])
def test_idx_files_give_the_images_and_labels_written(tmp_path, gzipped):
    images, labels = grey_images(12)
    write_idx(tmp_path / "MNIST/raw", images, labels, gzipped=gzipped)
    info = describe_dataset(Choice("mnist"))
    assert info.on_disk(tmp_path)
    samples = info.open(tmp_path, True)
    assert len(samples) == 12 and samples[0][0].mode == "L"
    assert all((pixels(samples[at]) == images[at]).all() and samples[at][1] == labels[at] for at in range(12))


def test_parts_are_told_apart(tmp_path):
    for part, count in (("train", 12), ("t10k", 5)):
        write_idx(tmp_path / "MNIST/raw", *grey_images(count), part=part)
    info = describe_dataset(Choice("mnist"))
    assert [len(info.open(tmp_path, train)) for train in (True, False)] == [12, 5]


def test_installed_package_is_used_where_the_root_has_no_files(tmp_path, monkeypatch):
    monkeypatch.setattr(idx_files, "DEBIAN_FOLDERS", {"FashionMNIST": tmp_path / "package"})
    write_idx(tmp_path / "package", *grey_images(4), gzipped=True)
    before = sorted(tmp_path.rglob("*"))
    info = describe_dataset(Choice("fashion_mnist"))
    assert info.on_disk(tmp_path / "root") and len(info.open(tmp_path / "root", True)) == 4
    assert not describe_dataset(Choice("mnist")).on_disk(tmp_path / "root")
    assert sorted(tmp_path.rglob("*")) == before


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("damaged", "told", "change"),
    [
        (IMAGES, "9,403 of the 9,408 B", lambda content: content[:-5]),
        (IMAGES, "more than the 9,408 B", lambda content: content + b"x"),
        (IMAGES, "ends within its header, after 7 B", lambda content: content[:7]),
        (IMAGES, "ends within its header, after 0 B", lambda content: b""),
        (IMAGES, "not an idx file of bytes with 3 dimensions", lambda content: b"<html>not found</html>"),
        (IMAGES, "its header asks for", lambda content: content[:4] + b"\xff" * 12 + content[16:]),
        (
            IMAGES,
            "its images have the shape (14, 56)",
            lambda content: content[:8] + bytes((0, 0, 0, 14, 0, 0, 0, 56)) + content[16:],
        ),
        (LABELS, "11 labels for the 12 images", lambda content: idx_bytes(np.zeros(11))),
        (LABELS, "the label 10; allowed: 0 to 9", lambda content: content[:-1] + b"\n"),
    ],
)
def test_damaged_idx_file_is_named_with_what_is_wrong(tmp_path, damaged, told, change):
    folder = tmp_path / "MNIST/raw"
    write_idx(folder, *grey_images(12))
    damage(folder / damaged, change)
    with pytest.raises(DataError) as caught:
        describe_dataset(Choice("mnist")).open(tmp_path, True)
    assert str(caught.value).startswith(f"{folder / damaged}: ") and told in str(caught.value)
    assert "bench data fetch" in str(caught.value)


@pytest.mark.parametrize(
    "change", [lambda content: content[:-30], lambda content: content[:-8] + b"\0" * 8, lambda content: b"plain"]
)
def test_damaged_gzip_file_is_refused(tmp_path, change):
    folder = tmp_path / "MNIST/raw"
    write_idx(folder, *grey_images(12), gzipped=True)
    damage(folder / f"{IMAGES}.gz", change)
    with pytest.raises(DataError, match=f"{IMAGES}.gz: "):
        describe_dataset(Choice("mnist")).open(tmp_path, True)


def test_gzip_bomb_is_read_no_further_than_its_header_says(tmp_path, monkeypatch):
    path = tmp_path / f"{IMAGES}.gz"
    path.write_bytes(gzip.compress(idx_bytes(np.zeros((1, 28, 28))) + b"\0" * 50_000_000))
    asked = []
    original = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda self, size=-1: asked.append(size) or original(self, size))
    with pytest.raises(DataError, match="more than the 784 B"):
        idx_files.read_idx(path, dimensions=3)
    assert 0 < sum(asked) < 1000 and min(asked) > 0


def test_missing_part_says_which_files_to_put_where(tmp_path):
    write_idx(tmp_path / "MNIST/raw", *grey_images(3))
    with pytest.raises(DataError) as caught:
        describe_dataset(Choice("mnist")).open(tmp_path, False)
    assert "t10k-images-idx3-ubyte" in str(caught.value) and str(tmp_path / "MNIST/raw") in str(caught.value)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_of_debian_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(idx_files, "DEBIAN_FOLDERS", {"FashionMNIST": DEBIAN})
    info = describe_dataset(Choice("fashion_mnist"))
    samples = info.open(tmp_path, True)
    scaled = samples.data.numpy() / 255
    assert len(samples) == 60_000 and len(info.open(tmp_path, False)) == 10_000
    assert (scaled.mean(), scaled.std()) == pytest.approx((0.286041, 0.353024), abs=1e-6)
    assert (info.mean[0], info.std[0]) == pytest.approx((scaled.mean(), scaled.std()), abs=5e-5)
    assert samples.targets.bincount().tolist() == [6000] * 10
    assert info.class_names[samples[0][1]] == "Ankle boot"
