"""CIFAR batches of any origin: read to the byte; hostile and damaged ones refused, and never run."""

import hashlib
import os
import pickle

import numpy as np
import pytest

from bench.catalog import describe_dataset
from bench.errors import DataError
from bench.records import Choice
from tests.unit.written_files import batch_dictionary, colour_images, pixels, python2_batch, write_cifar10


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_cifar10_batches_of_any_checksum_give_the_images_written(tmp_path, protocol):
    images, labels = colour_images(18)
    write_cifar10(tmp_path, images, labels, protocol)
    info = describe_dataset(Choice("cifar10"))
    assert info.on_disk(tmp_path)
    samples = info.open(tmp_path, True)
    assert len(samples) == 15 and samples[0][0].mode == "RGB"
    assert all((pixels(samples[at]) == images[at]).all() and samples[at][1] == labels[at] for at in range(15))
    held_out = info.open(tmp_path, False)
    assert len(held_out) == 3 and (pixels(held_out[2]) == images[17]).all()


def test_batches_as_python_2_wrote_them_are_read(tmp_path):
    images, labels = colour_images(18)
    folder = write_cifar10(tmp_path, images, labels)
    (folder / "data_batch_1").write_bytes(python2_batch(images[:3], labels[:3]))
    assert list(pickle.loads(python2_batch(images[:3], labels[:3]), encoding="latin1")["labels"]) == [0, 1, 2]
    samples = describe_dataset(Choice("cifar10")).open(tmp_path, True)
    assert all((pixels(samples[at]) == images[at]).all() for at in range(15))


def test_cifar100_is_read_by_its_fine_labels(tmp_path):
    images, labels = colour_images(6, classes=100)
    (tmp_path / "cifar-100-python").mkdir()
    batch = {**batch_dictionary(images, [99, *labels[1:]], "fine_labels"), b"coarse_labels": [0] * 6}
    (tmp_path / "cifar-100-python/train").write_bytes(pickle.dumps(batch, protocol=2))
    info = describe_dataset(Choice("cifar100"))
    assert info.on_disk(tmp_path) and info.class_names[info.open(tmp_path, True)[0][1]] == "worm"


def test_batches_with_the_right_checksums_go_through_torchvision(tmp_path, monkeypatch):
    import torchvision

    folder = write_cifar10(tmp_path, *colour_images(18))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["airplane"]}, protocol=2))
    # torchvision reads text keys only, as Python 2 wrote them
    for path in folder.iterdir():
        content = pickle.loads(path.read_bytes())
        text = {key if isinstance(key, str) else key.decode(): value for key, value in content.items()}
        path.write_bytes(pickle.dumps(text, protocol=2))
    sums = {path.name: hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() for path in folder.iterdir()}
    real = torchvision.datasets.CIFAR10
    monkeypatch.setattr(real, "train_list", [[name, sums[name]] for name, _ in real.train_list])
    monkeypatch.setattr(real, "test_list", [[name, sums[name]] for name, _ in real.test_list])
    monkeypatch.setattr(real, "meta", {**real.meta, "md5": sums["batches.meta"]})
    samples = describe_dataset(Choice("cifar10")).open(tmp_path, True)
    assert type(samples) is real and len(samples) == 15


class Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("place", ["instead", b"data", b"labels", b"filenames"])
def test_pickle_that_would_run_code_is_refused_and_not_run(tmp_path, place):
    images, labels = colour_images(18)
    folder = write_cifar10(tmp_path, images, labels)
    hostile = Hostile(tmp_path / "ran")
    batch = hostile if place == "instead" else {**batch_dictionary(images[:3], labels[:3]), place: hostile}
    (folder / "data_batch_2").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(DataError) as caught:
        describe_dataset(Choice("cifar10")).open(tmp_path, True)
    assert str(folder / "data_batch_2") in str(caught.value) and "mkdir" in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("told", "content"),
    [
        ("not a pickle of arrays", b""),
        ("not a pickle of arrays", b"<html>not found</html>"),
        ("not a pickle of arrays", b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R."),
        ("codec 'zlib'", b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x001X\x04\x00\x00\x00zlib\x86R."),
        ("outside the file", b"\x80\x02X\x01\x00\x00\x00aQ."),
        ("does not contain a dictionary", pickle.dumps([1, 2])),
        ('"data" is not an array of bytes', pickle.dumps({b"labels": [1]})),
        ('"data" is not an array of bytes', pickle.dumps({b"data": np.zeros((2, 3072)), b"labels": [1, 1]})),
        ('"data" is not an array of bytes', pickle.dumps({b"data": np.zeros((2, 12), np.uint8), b"labels": [1, 1]})),
        ('"labels" is not a list of 2', pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]})),
        ("a label outside 0 to 9", pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 10]})),
        ("a label outside 0 to 9", pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, -1]})),
    ],
)
def test_damaged_batch_is_named_with_what_is_wrong(tmp_path, told, content):
    folder = write_cifar10(tmp_path, *colour_images(18))
    (folder / "data_batch_3").write_bytes(content)
    with pytest.raises(DataError) as caught:
        describe_dataset(Choice("cifar10")).open(tmp_path, True)
    assert str(caught.value).startswith(f"{folder / 'data_batch_3'}: ") and told in str(caught.value)


@pytest.mark.parametrize("kept", [0.05, 0.5, 0.99])
def test_truncated_batch_is_refused(tmp_path, kept):
    folder = write_cifar10(tmp_path, *colour_images(18))
    content = (folder / "test_batch").read_bytes()
    (folder / "test_batch").write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(DataError, match="test_batch: "):
        describe_dataset(Choice("cifar10")).open(tmp_path, False)


def test_array_that_promises_more_than_it_holds_is_refused(tmp_path):
    folder = write_cifar10(tmp_path, *colour_images(18))
    images, labels = colour_images(3)
    content = python2_batch(images, labels).replace(b"M\x03\x00M\x00\x0c", b"M\x04\x00M\x00\x0c")
    (folder / "data_batch_1").write_bytes(content)
    with pytest.raises(DataError, match="9,216 B for 4 images"):
        describe_dataset(Choice("cifar10")).open(tmp_path, True)


def test_incomplete_set_is_not_on_disk_and_says_what_is_missing(tmp_path):
    folder = write_cifar10(tmp_path, *colour_images(18))
    (folder / "data_batch_4").unlink()
    info = describe_dataset(Choice("cifar10"))
    assert not info.on_disk(tmp_path)
    with pytest.raises(DataError, match="missing data_batch_4"):
        info.open(tmp_path, True)
