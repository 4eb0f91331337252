"""Data sets: real files read, damaged and hostile ones refused, downloads whole or not at all, true pictures."""

import functools
import gzip
import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest

from bench import gallery
from bench.catalog import data_fetch, describe_dataset, idx_files, names, parse_choice
from bench.catalog.data_files import default_data_root
from bench.errors import BenchError, DataError
from bench.records import Choice
from bench.workload.images import build_transform, undo_normalisation
from tests.unit.written_files import (
    batch_dictionary,
    colour_images,
    grey_images,
    idx_bytes,
    python2_batch,
    write_cifar10,
    write_idx,
    write_tree,
)

DEBIAN = idx_files.DEBIAN_FOLDERS["FashionMNIST"]


@pytest.fixture(autouse=True)
def no_debian_package(monkeypatch):
    monkeypatch.setattr(idx_files, "DEBIAN_FOLDERS", {})


def pixels(sample):
    return np.asarray(sample[0])


# Facts


@pytest.mark.parametrize(
    ("name", "shape", "classes", "mean"),
    [
        ("mnist", (1, 28, 28), 10, (0.1307,)),
        ("fashion_mnist", (1, 28, 28), 10, (0.2860,)),
        ("cifar10", (3, 32, 32), 10, (0.5, 0.5, 0.5)),
        ("cifar100", (3, 32, 32), 100, (0.5071, 0.4865, 0.4409)),
        ("imagenet", (3, 224, 224), 1000, (0.485, 0.456, 0.406)),
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


# Where data lies


def test_data_root_is_taken_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    assert default_data_root() == tmp_path


def test_data_root_is_a_cache_folder_below_home(monkeypatch, tmp_path):
    monkeypatch.delenv("BENCH_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_data_root() == tmp_path / ".cache/bench/data"


def test_account_without_home_has_a_data_root_all_the_same(monkeypatch):
    monkeypatch.delenv("BENCH_DATA", raising=False)
    monkeypatch.setattr(
        Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("Could not determine home directory."))
    )
    assert default_data_root().name.startswith("bench-data-")


# idx files


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


def _damage(name, change):
    def apply(folder):
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return apply


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("damaged", "told", "change"),
    [
        (IMAGES, "9,403 of the 9,408 B", lambda content: content[:-5]),
        (IMAGES, "more than the 9,408 B", lambda content: content + b"x"),
        (IMAGES, "ends inside its header, after 7 B", lambda content: content[:7]),
        (IMAGES, "ends inside its header, after 0 B", lambda content: b""),
        (IMAGES, "no idx file of bytes with 3 dimensions", lambda content: b"<html>not found</html>"),
        (IMAGES, "its header asks for", lambda content: content[:4] + b"\xff" * 12 + content[16:]),
        (
            IMAGES,
            "its images are (14, 56)",
            lambda content: content[:8] + bytes((0, 0, 0, 14, 0, 0, 0, 56)) + content[16:],
        ),
        (LABELS, "11 labels for the 12 images", lambda content: idx_bytes(np.zeros(11))),
        (LABELS, "the label 10; allowed are 0 to 9", lambda content: content[:-1] + b"\n"),
    ],
)
def test_damaged_idx_file_is_named_with_what_is_wrong(tmp_path, damaged, told, change):
    folder = tmp_path / "MNIST/raw"
    write_idx(folder, *grey_images(12))
    _damage(damaged, change)(folder)
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
    _damage(f"{IMAGES}.gz", change)(folder)
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


# CIFAR batches


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
        ("no pickle of arrays", b""),
        ("no pickle of arrays", b"<html>not found</html>"),
        ("no pickle of arrays", b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R."),
        ("codec 'zlib'", b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x001X\x04\x00\x00\x00zlib\x86R."),
        ("outside the file", b"\x80\x02X\x01\x00\x00\x00aQ."),
        ("no dictionary", pickle.dumps([1, 2])),
        ('"data" is no array of bytes', pickle.dumps({b"labels": [1]})),
        ('"data" is no array of bytes', pickle.dumps({b"data": np.zeros((2, 3072)), b"labels": [1, 1]})),
        ('"data" is no array of bytes', pickle.dumps({b"data": np.zeros((2, 12), np.uint8), b"labels": [1, 1]})),
        ('"labels" is no list of 2', pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]})),
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


# Folders of one's own


def test_folder_counts_classes_and_images_and_gives_rgb(tmp_path):
    write_tree(tmp_path, classes=("cat", "dog", "eel"))
    (tmp_path / ".cache").mkdir()
    info = describe_dataset(parse_choice("dataset", f"folder:{tmp_path}"))
    assert info.images.shape == (3, 224, 224) and info.class_names == ("cat", "dog", "eel") and info.train_samples == 9
    samples = info.open(Path("/nowhere"), True)
    assert len(samples) == 9 and {samples[at][0].mode for at in range(9)} == {"RGB"}
    assert [samples[at][1] for at in range(9)] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_grey_folder_gives_one_channel(tmp_path):
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
    [((), "No such file"), (("root",), "no class folders"), (("root", "root/cat"), "no images in its 1 class folders")],
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
    _damage(name, change)(tmp_path / "dog")
    samples = describe_dataset(Choice.of("folder", {"path": str(tmp_path)})).open(tmp_path, True)
    with pytest.raises(DataError) as caught:
        samples[3 + int(name[0])]
    assert str(caught.value).startswith(f"{tmp_path / 'dog' / name}: ") and "\n" not in str(caught.value)


def test_imagenet_takes_its_images_from_a_folder(tmp_path):
    write_tree(tmp_path)
    info = describe_dataset(Choice.of("imagenet", {"folder": str(tmp_path)}))
    assert info.images.classes == 1000 and len(info.open(tmp_path, True)) == 6
    assert describe_dataset(Choice("imagenet")).open is None


# Fetching


def fake_download(monkeypatch, code):
    """Let the download process run `code`, which finds its folder in `folder`."""
    program = f"import sys, pathlib, time; folder = pathlib.Path(sys.argv[1])\n{code}"
    monkeypatch.setattr(data_fetch, "_download_command", lambda name, folder: [sys.executable, "-c", program, folder])


WRITE_MNIST = """
raw = folder / "MNIST/raw"; raw.mkdir(parents=True)
for part in ("train", "t10k"):
    for name in ("images-idx3-ubyte", "labels-idx1-ubyte", "labels-idx1-ubyte.gz"):
        (raw / f"{part}-{name}").write_bytes(b"x")
"""


def test_fetched_files_are_moved_into_place(tmp_path, monkeypatch):
    fake_download(monkeypatch, WRITE_MNIST)
    root = tmp_path / "new" / "data"
    assert data_fetch.fetch_dataset(Choice("mnist"), root) == root
    assert describe_dataset(Choice("mnist")).on_disk(root)
    assert len([path for path in root.rglob("*") if path.is_file()]) == 4 and not list(root.glob(".fetch*"))


def test_failed_download_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    fake_download(monkeypatch, f"{WRITE_MNIST}\nprint('Downloading'); print('no route to host'); sys.exit(1)")
    with pytest.raises(DataError) as caught:
        data_fetch.fetch_dataset(Choice("mnist"), tmp_path)
    message = str(caught.value)
    assert (
        "\n" not in message and "could not download it: no route to host." in message and "Downloading" not in message
    )
    assert str(tmp_path / "MNIST/raw") in message and "synthetic" in message
    assert not list(tmp_path.iterdir())


def test_download_that_dies_without_a_word_is_told_by_its_exit_code(tmp_path, monkeypatch):
    fake_download(monkeypatch, f"{WRITE_MNIST}\nimport os; os._exit(7)")
    with pytest.raises(DataError, match="exit code 7"):
        data_fetch.fetch_dataset(Choice("mnist"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_stalled_download_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(data_fetch, "STALL_TIMEOUT_S", 0.5)
    monkeypatch.setattr(data_fetch, "IMPORT_ALLOWANCE_S", 5.0)
    fake_download(monkeypatch, f"{WRITE_MNIST}\ntime.sleep(200)")
    with pytest.raises(DataError, match="no answer for"):
        data_fetch.fetch_dataset(Choice("mnist"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_files_that_are_there_are_not_fetched_again(tmp_path, monkeypatch):
    write_idx(tmp_path / "MNIST/raw", *grey_images(3))
    fake_download(monkeypatch, "sys.exit(1)")
    assert data_fetch.fetch_dataset(Choice("mnist"), tmp_path) == tmp_path


def test_set_without_files_cannot_be_fetched(tmp_path):
    with pytest.raises(DataError, match="imagenet: nothing to fetch"):
        data_fetch.fetch_dataset(Choice("imagenet"), tmp_path)


def test_root_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write below .*/file: "):
        data_fetch.fetch_dataset(Choice("mnist"), tmp_path / "file")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (URLError(OSError(-3, "Temporary failure in name resolution")), "no network"),
        (
            RuntimeError("Error downloading a.gz:\nTried http://x, got:\n<urlopen error>"),
            "Tried http://x, got: <urlopen",
        ),
        (ConnectionResetError(104, "reset by peer"), "ConnectionResetError: "),
    ],
)
def test_every_way_that_torchvision_fails_becomes_one_line(tmp_path, monkeypatch, error, told):
    import torchvision

    def refuse(*args, **settings):
        raise error

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", refuse)
    monkeypatch.setattr(data_fetch.socket, "setdefaulttimeout", lambda seconds: None)
    reason = data_fetch.download("CIFAR10", str(tmp_path))
    assert told in reason and "\n" not in reason


def test_download_process_starts_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-c", "import bench.catalog.data_fetch"]
    assert data_fetch._run_download(command, tmp_path) is None


# Pictures


@pytest.mark.parametrize("text", ["mnist", "cifar10", "folder"])
def test_normalisation_undone_gives_the_pixels_written(tmp_path, text, monkeypatch):
    write_idx(tmp_path / "MNIST/raw", *grey_images(9))
    write_cifar10(tmp_path, *colour_images(18))
    write_tree(tmp_path / "tree", size=(224, 224))
    choice = parse_choice("dataset", f"folder:{tmp_path / 'tree'}" if text == "folder" else text)
    info = describe_dataset(choice)
    samples = info.open(tmp_path, True)
    restored = undo_normalisation(build_transform(info)(samples[3][0]), info)
    written = pixels(samples[3]).reshape(info.images.height, info.images.width, info.images.channels)
    assert np.abs(restored.numpy() * 255 - written).max() < 0.01


def test_picture_shows_drawn_samples_with_their_labels(tmp_path, monkeypatch):
    images, labels = colour_images(18)
    write_cifar10(tmp_path, images, labels)
    drawn = []
    monkeypatch.setattr(gallery, "_draw", lambda pictures, title, target: drawn.append((pictures, title)))
    assert gallery.render_samples(Choice("cifar10"), tmp_path, tmp_path / "a.png", count=4, seed=7) == "files"
    gallery.render_samples(Choice("cifar10"), tmp_path, tmp_path / "a.png", count=4, seed=7)
    gallery.render_samples(Choice("cifar10"), tmp_path, tmp_path / "a.png", count=4, seed=8)
    found = [
        [int(np.abs(images / 255 - picture.numpy()).max((1, 2, 3)).argmin()) for picture, _ in run[0]] for run in drawn
    ]
    assert found[0] == found[1] != found[2] and len(set(found[0])) == 4
    class_names = describe_dataset(Choice("cifar10")).class_names
    assert [label for _, label in drawn[0][0]] == [class_names[labels[at]] for at in found[0]]
    assert drawn[0][1] == "cifar10: 4 of 15 train samples"


def test_picture_is_a_png_and_the_same_for_the_same_seed(tmp_path):
    write_cifar10(tmp_path, *colour_images(18))
    draw = functools.partial(gallery.render_samples, Choice("cifar10"), tmp_path, count=5)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        draw(tmp_path / "pictures" / f"{name}.png", seed=seed)
    a, b, c = (path.read_bytes() for path in sorted((tmp_path / "pictures").iterdir()))
    assert a[:8] == b"\x89PNG\r\n\x1a\n" and a == b != c


def test_every_picture_of_the_grid_is_drawn(tmp_path):
    from PIL import Image

    images = np.zeros((18, 32, 32, 3), dtype=np.uint8)
    images[...] = (250, 0, 0)
    write_cifar10(tmp_path, images, [0] * 18)
    gallery.render_samples(Choice("cifar10"), tmp_path, tmp_path / "a.png", count=9)
    with Image.open(tmp_path / "a.png") as picture:
        red = (np.asarray(picture.convert("RGB")) == (250, 0, 0)).all(-1)
    assert red.mean() > 0.5


def test_picture_of_synthetic_images_says_so(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(gallery, "_draw", lambda pictures, title, target: titles.append(title))
    assert gallery.render_samples(Choice("cifar10"), tmp_path, tmp_path / "a.png") == "synthetic"
    assert titles == ["cifar10: 16 of 50,000 train samples, synthetic images"]


@pytest.mark.parametrize("settings", [{"split": "valid"}, {"count": 0}, {"count": 10_000}])
def test_picture_refuses_what_it_cannot_show(tmp_path, settings):
    with pytest.raises(BenchError, match="Allowed: "):
        gallery.render_samples(Choice("cifar10"), tmp_path, tmp_path / "a.png", **settings)
    assert not (tmp_path / "a.png").exists()
