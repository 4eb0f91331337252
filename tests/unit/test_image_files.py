"""Image trees: which folders are parts and which classes, what is refused and how it is named, and what a decoded value is."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image

from bench.catalog import describe_dataset, image_files
from bench.catalog.image_files import check_images, convert_image, decode_image, fingerprint, read_tree
from bench.config import check_config
from bench.errors import ConfigError, DataError
from bench.plan import build_cases, build_plan
from bench.records import Choice
from tests.unit.written_files import damage, write_tree


def grown(root: Path, *files: str) -> Path:
    """A tree of these files: `a/1.png` an image, `a/` a folder, `a->b` a link, anything else a text."""
    for name in files:
        place, _, target = name.partition("->")
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if target:
            path.symlink_to(target)
        elif place.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        elif path.suffix in image_files.IMAGE_SUFFIXES:
            Image.new("RGB", (4, 4), (len(name), 2, 3)).save(path)
        else:
            path.write_text("no image", encoding="utf-8")
    return root


def part(name: str, *classes: str) -> tuple[str, ...]:
    return tuple(f"{name}/{of_class}/{number}.png" for of_class in classes for number in range(2))


def understood(root: Path) -> tuple[str, str, tuple[str, ...]]:
    tree = read_tree(root)
    return str(tree.train.relative_to(root)), str(tree.test.relative_to(root)), tree.class_names


# parts and classes


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("train", "val"),
        ("train", "test"),
        ("train", "valid"),
        ("Train", "Validation"),
        ("TRAIN", "TEST"),
        ("training", "dev"),
        ("Training", "Testing"),
        ("train", "eval"),
        ("train2017", "val2017"),
        ("train_set", "test_set"),
        ("trainset", "testset"),
        ("Train Images", "Test Images"),
        ("trainval", "test"),
        ("training-data", "validation-data"),
        ("seg_train", "seg_test"),
    ],
)
def test_parts_are_recognised_by_their_usual_names_in_any_case(tmp_path: Path, train: str, held_out: str) -> None:
    grown(tmp_path, *part(train, "a", "b"), *part(held_out, "a", "b"))
    assert understood(tmp_path) == (train, held_out, ("a", "b"))


def test_validation_comes_before_test_and_training_images_alone_are_trained_on(tmp_path: Path) -> None:
    grown(tmp_path, *part("train", *"abcd"), *part("valid", *"abcd"), *part("test", *"abcd"))
    info = describe_dataset(Choice.of("folder", {"path": str(tmp_path)}))
    assert (info.images.classes, info.train_samples, info.test_samples) == (4, 8, 8)
    assert info.open is not None
    assert {Path(path).parts[-3] for path, _ in info.open(tmp_path, True).samples} == {"train"}
    assert {Path(path).parts[-3] for path, _ in info.open(tmp_path, False).samples} == {"valid"}


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        (part("train", "a", "b"), ("train", "train", ("a", "b"))),
        (
            (
                *part("dataset/images/train", "a", "b"),
                *part("dataset/images/val", "a", "b"),
                "dataset/labels/train/1.txt",
            ),
            ("dataset/images/train", "dataset/images/val", ("a", "b")),
        ),
        (part("flower_photos", "daisy", "rose"), ("flower_photos", "flower_photos", ("daisy", "rose"))),
        (
            (*part("seg_train/seg_train", "a", "b"), *part("seg_test/seg_test", "a", "b")),
            ("seg_train/seg_train", "seg_test/seg_test", ("a", "b")),
        ),
        ((*part("train", "a", "b"), "test/1.png", "test/2.png"), ("train", "train", ("a", "b"))),
        ((*part("train", "a", "b"), *part("val", "y", "z"), *part("test", "a", "b")), ("train", "test", ("a", "b"))),
        ((*part("train", "a", "b"), *part("val", "a", "b"), "labels/a.txt"), ("train", "val", ("a", "b"))),
        (("bus/1.png", "train/1.png"), (".", ".", ("bus", "train"))),
        (("valid/1.png", "invalid/1.png"), (".", ".", ("invalid", "valid"))),
        (("bullet_train/1.png", "test_tube/1.png"), (".", ".", ("bullet_train", "test_tube"))),
        ((*part("train", "bus", "train"), *part("val", "bus", "train")), ("train", "val", ("bus", "train"))),
        (("a/x/1.png", "a/y/2.png", "b/0.png", "b/z/1.png"), (".", ".", ("a", "b"))),
        (("0.png", "a/1.png", "b/1.PNG"), (".", ".", ("a", "b"))),
    ],
    ids=[
        "train alone",
        "one level down",
        "a folder around",
        "a part in itself",
        "unsorted test",
        "few-shot val",
        "texts beside",
        "a class train",
        "a class valid",
        "classes with such words",
        "a class train in train",
        "nested",
        "an image beside",
    ],
)
def test_what_is_unambiguous_is_recognised(
    tmp_path: Path, files: tuple[str, ...], wanted: tuple[str, str, tuple[str, ...]]
) -> None:
    assert understood(grown(tmp_path, *files)) == wanted


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (part("test", "a", "b"), ("test and no train", "folder:{root}/test")),
        ((*part("test", "a", "b"), *part("val", "a", "b")), ("test, val and no train",)),
        ((*part("train", "a", "b"), "a/1.png", "b/1.png"), ("holds train", "beside a, b")),
        ((*part("train", "a", "b"), "bus/1.png"), ("holds train", "beside bus")),
        (("cats/1.png", "dogs/1.png", "test/1.png"), ("holds test", "beside cats, dogs")),
        (
            (*part("train", "a", "b"), *part("test", "a", "b"), "unlabeled/1.png"),
            ("holds test, train", "beside unlabeled"),
        ),
        ((*part("train", "a", "b"), *part("Training", "a", "b")), ("Training, train are named like one part",)),
        (("train/1.png", "test/1.png"), ("{root}/train: 1 image directly in it",)),
        (("images/train/1.png", "images/val/1.png", "labels/train/1.txt"), ("{root}/images/train: 1 image directly",)),
        (
            ("cup/train/1.png", "cup/test/1.png", "pan/train/1.png", "pan/test/1.png"),
            ("cup/test and cup/train", "{root}/cup"),
        ),
        ((*part("fold1", "a", "b"), *part("fold2", "a", "b")), ("named like parts, not classes (fold1, fold2)",)),
        (("a/1.png",), ("a single class folder, a",)),
        (part("train", "a"), ("{root}/train: it has a single class folder, a",)),
    ],
    ids=[
        "test alone",
        "no train",
        "train beside classes",
        "train nested beside a class",
        "unsorted test beside classes",
        "a third beside parts",
        "two trains",
        "unsorted parts",
        "YOLO",
        "parts in classes",
        "folds",
        "one class",
        "one in train",
    ],
)
def test_an_ambiguous_tree_is_refused_with_what_was_found_and_what_is_expected(
    tmp_path: Path, files: tuple[str, ...], told: tuple[str, ...]
) -> None:
    with pytest.raises(DataError) as caught:
        read_tree(grown(tmp_path, *files))
    assert "Expected: one folder of images for each class" in str(caught.value)
    assert "\n" not in str(caught.value)
    for words in told:
        assert words.format(root=tmp_path) in str(caught.value)


def test_folders_of_systems_and_tools_are_neither_classes_nor_images(tmp_path: Path) -> None:
    from bench.catalog.samples import FolderSamples

    grown(tmp_path, *part("train", "a", "b"), *part("val", "a", "b"))
    before = understood(tmp_path), read_tree(tmp_path).train_samples, fingerprint(read_tree(tmp_path))
    for place in ("", "train", "train/a"):
        for name in ("__MACOSX", ".ipynb_checkpoints", "@eaDir", "lost+found", "$RECYCLE.BIN", ".git", "#recycle"):
            grown(tmp_path / place, f"{name}/1.png")
        grown(tmp_path / place, ".DS_Store", "Thumbs.db", "desktop.ini")
        (tmp_path / place / "._1.png").write_bytes(b"a resource fork")
    tree = read_tree(tmp_path)
    assert (understood(tmp_path), tree.train_samples, fingerprint(tree)) == before
    check_images(tree)
    assert len(FolderSamples(tree, True, 3)) == tree.train_samples


def test_a_held_out_part_has_the_labels_of_the_training_part(tmp_path: Path) -> None:
    from bench.catalog.samples import FolderSamples

    grown(tmp_path, *part("train", *"abcd"), *part("val", *"bdz"))
    tree = read_tree(tmp_path)
    labels = {Path(path).parent.name: label for path, label in FolderSamples(tree, False, 3).samples}
    assert labels == {"b": 1, "d": 3}
    assert tree.test_samples == 4
    assert [note.removeprefix(f"{tmp_path}/val ") for note in tree.notes] == [
        "has no images of a, c",
        "also has the folders z, ignored, as they are not classes of the training split",
    ]


def test_classes_that_look_like_domains_are_taken_and_said(tmp_path: Path) -> None:
    tree = read_tree(grown(tmp_path, *part("photo", "a", "b"), *part("sketch", "a", "b")))
    assert tree.class_names == ("photo", "sketch")
    (note,) = tree.notes
    assert "if those are the classes" in note


def test_the_images_and_their_order_are_torchvisions(tmp_path: Path) -> None:
    from bench.catalog.samples import FolderSamples

    write_tree(tmp_path, classes=("b", "a-1", "a"))
    grown(tmp_path, "a/sub/9.png", "a/sub.x/1.png", "a/0.txt", "b/Z.JPG", "b/a.jpeg", "store/1.png", "a/link->../store")
    wanted = torchvision.datasets.ImageFolder(tmp_path)
    found = FolderSamples(read_tree(tmp_path), True, 3)
    assert (found.samples, found.class_to_idx) == (wanted.samples, wanted.class_to_idx)


# what cannot be read


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (("a/1.png", "b/1.png", "c/"), "c: no images in this class folder."),
        (("a/1.png", "b/1.png", "c/", "d/1.gif"), "c: no images in this class folder, nor in d."),
        (
            ("a/1.png", "b/1.png", "c/1.gif", "c/2.heic"),
            "c: no images in this class folder; it holds 1 x .gif, 1 x .heic.",
        ),
        ((*part("train", "a", "b"), "train/c/", "val/a/1.png"), "train/c: no images in this class folder."),
        (("a/", "b/1.avif"), ": no images in its 2 class folders; it holds 1 x .avif. JPEG, PNG"),
        (("1.png", "2.png"), ": 2 images directly in it, and no class folders with images."),
        (("a.txt",), ": it has no class folders; it holds 1 x .txt."),
        (("a/1.png", "b/1.png", "c->nowhere"), "c: a broken link."),
        (("a/1.png", "b/1.png", "b/2.png->../nowhere.png"), "b/2.png: a broken link."),
        (("a/1.png", "b/1.png", "b/loop->loop"), "b/loop: Too many levels of symbolic links."),
        (("a/1.png", "b/1.png", "b/up->.."), "b/up: a link back to a parent folder."),
        (("a/1.png", "b/1.png", "b/x->../a", "a/x->../b"), "a link back to a parent folder."),
    ],
)
def test_a_tree_that_cannot_be_read_is_refused_with_the_name_of_what_is_at_fault(
    tmp_path: Path, files: tuple[str, ...], told: str
) -> None:
    root = grown(tmp_path / "R", *files)
    with pytest.raises(DataError) as caught:
        read_tree(root)
    assert told in str(caught.value)
    assert str(root) in str(caught.value)


def test_a_pipe_that_is_called_an_image_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    write_tree(tmp_path)
    os.mkfifo(tmp_path / "dog" / "9.png")
    with pytest.raises(DataError, match=r"dog/9\.png: not a regular file"):
        read_tree(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    write_tree(tmp_path)
    (tmp_path / "dog").chmod(0)
    try:
        with pytest.raises(DataError, match="dog: Permission denied"):
            read_tree(tmp_path)
    finally:
        (tmp_path / "dog").chmod(0o700)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/nowhere/at/all", "No such file or directory"),
        (__file__, "not a folder"),
        ("/nowhere/\udcff", "No such file or directory"),
        ("a\0b", "null byte"),
        ("x" * 5000, "File name too long"),
        ("~nobody-of-this-name/x", "home directory"),
    ],
)
def test_a_path_that_leads_nowhere_is_one_line(path: str, told: str) -> None:
    with pytest.raises(DataError) as caught:
        describe_dataset(Choice.of("folder", {"path": path}))
    assert told in str(caught.value)
    assert "Give a folder" in str(caught.value)
    assert str(caught.value).isprintable()


def test_links_that_fan_out_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "MOST_FOLDERS", 1000)
    grown(tmp_path, *(f"{level}/{side}->../{level + 1}" for level in range(12) for side in "lr"), "12/1.png")
    with pytest.raises(DataError, match="more than 1,000 folders"):
        read_tree(tmp_path)


NAMES = (
    "a b",
    "Ünïcode 猫",
    "new\nline",
    "tab\t",
    "quote'\"",
    "percent%s{x}",
    "-dash",
    "\udcff",
    "semi;colon",
    "back\\slash",
)


def test_names_of_odd_characters_are_read_and_printed(tmp_path: Path) -> None:
    for name in NAMES:
        write_tree(tmp_path, classes=(name,), count=2)
    info = describe_dataset(Choice.of("folder", {"path": str(tmp_path)}))
    assert info.images.classes == len(NAMES)
    assert all(name.isprintable() for name in info.class_names)
    assert info.open is not None and info.find is not None
    samples = info.open(tmp_path, True)
    assert all(samples[at][0].mode == "RGB" for at in range(len(samples)))
    assert info.find(tmp_path).samples == len(samples)
    for name in NAMES:
        path = tmp_path / name / "1.jpg"
        path.write_bytes(b"no image")
        with pytest.raises(DataError) as caught:
            decode_image(path, "RGB")
        assert str(caught.value).isprintable()
        str(caught.value).encode()


# planning


def config(root: Path, **sections: Any) -> Any:
    grid = {"dataset": f"folder:{root}", "model": "mlp", "optimizer": "sgd", "batch_size": 2, "image_size": 8}
    grid["input"] = sections.pop("input", ["synthetic", "loader"])
    return check_config({"name": "n", "grid": grid, "measure": {"repeats": 1}, **sections}, "test")


def test_an_empty_class_folder_is_refused_at_planning(tmp_path: Path) -> None:
    grown(tmp_path, "a/1.png", "b/1.png", "c/")
    with pytest.raises(ConfigError, match=rf"^grid\.dataset: {tmp_path}/c: no images in this class folder"):
        build_cases(config(tmp_path), "cpu")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda content: b"", "dog/1.jpg: an empty file"),
        (lambda content: b"a text", "dog/1.jpg: PIL cannot decode it as an image: cannot identify image file. "),
        (lambda content: content[: len(content) // 2], "dog/1.jpg: PIL cannot decode it as an image: "),
    ],
)
def test_an_image_that_cannot_be_decoded_is_refused_at_planning_where_images_are_read(
    tmp_path: Path, change: Any, told: str
) -> None:
    write_tree(tmp_path)
    damage(tmp_path / "dog/1.jpg", change)
    assert len(build_cases(config(tmp_path, input=["synthetic"]), "cpu")) == 1
    excluded = config(tmp_path, exclude=[{"input": "loader", "reason": "no"}])
    assert len(build_cases(excluded, "cpu")) == 2
    with pytest.raises(ConfigError) as caught:
        build_cases(config(tmp_path), "cpu")
    assert str(caught.value).startswith(f"grid.dataset: {tmp_path}/{told}")


def test_planning_opens_a_bounded_number_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(tmp_path, classes=tuple("abcdefgh"), count=10)
    opened: list[str] = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda path, *rest: opened.append(str(path)) or original(path, *rest))
    monkeypatch.setattr(image_files, "CHECKED_HEADERS", 16)
    monkeypatch.setattr(image_files, "DECODED", 8)
    build_cases(config(tmp_path), "cpu")
    assert len(opened) == 24
    assert {Path(path).parent.name for path in opened} == set("abcdefgh")


def test_files_of_a_set_in_a_fixed_form_are_checked_at_planning_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.unit.written_files import grey_images, write_idx

    write_idx(tmp_path / "MNIST/raw", *grey_images(20))
    settings = config("x", data={"root": str(tmp_path)}).model_copy(
        update={"grid": config("x").grid.model_copy(update={"dataset": (Choice("mnist"),)})}
    )
    assert len(build_cases(settings, "cpu")) == 2
    damage(tmp_path / "MNIST/raw/train-images-idx3-ubyte", lambda content: content[:500])
    with pytest.raises(ConfigError, match="train-images-idx3-ubyte: it holds 484 of"):
        build_cases(settings, "cpu")


# keys


def test_a_run_of_a_tree_has_another_key_where_its_classes_changed_and_the_same_where_nothing_did(
    tmp_path: Path,
) -> None:
    def keys() -> dict[str, str]:
        return {run.case.input: run.code_key for run in build_plan(config(tmp_path), "cpu")}

    write_tree(tmp_path)
    first, again = keys(), keys()
    write_tree(tmp_path, classes=("eel",))
    assert first == again != keys()
    shutil.rmtree(tmp_path / "eel")
    assert keys() == first


def test_a_fingerprint_is_that_of_a_copy_and_not_of_what_changed(tmp_path: Path) -> None:
    write_tree(tmp_path / "one")
    first = fingerprint(read_tree(tmp_path / "one"))
    shutil.copytree(tmp_path / "one", tmp_path / "elsewhere" / "two", copy_function=shutil.copyfile)
    assert fingerprint(read_tree(tmp_path / "elsewhere" / "two")) == first
    changes = {
        "added": lambda root: write_tree(root, classes=("eel",)),
        "removed": lambda root: (root / "dog/1.jpg").unlink(),
        "renamed": lambda root: (root / "dog/1.jpg").rename(root / "dog/7.jpg"),
        "moved": lambda root: (root / "dog/1.jpg").rename(root / "cat/7.jpg"),
        "replaced by one of the same size": lambda root: damage(
            root / "dog/2.png", lambda content: content[:-1] + b"x"
        ),
    }
    found = {}
    for name, change in changes.items():
        shutil.copytree(tmp_path / "one", tmp_path / name)
        change(tmp_path / name)
        found[name] = fingerprint(read_tree(tmp_path / name))
    assert len({first, *found.values()}) == 1 + len(changes)


def test_a_fingerprint_is_bounded_and_tells_another_data_set_under_the_same_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("HASHED_SIZES", 5), ("HASHED_CONTENTS", 3), ("HASHED_HEAD_BYTES", 64)):
        monkeypatch.setattr(image_files, name, value)
    read: list[Path] = []
    original = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *rest: read.append(path) or original(path, *rest))
    for seed, name in enumerate(("one", "two")):
        for number in range(40):
            path = tmp_path / name / "ab"[number % 2] / f"{number}.ppm"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng([seed, number]).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(
                path
            )
    read.clear()
    one, two = (fingerprint(read_tree(tmp_path / name)) for name in ("one", "two"))
    assert one != two
    assert len(read) == 6


# decoding

RAMP = np.linspace(0, 1, 256).reshape(16, 16)


def scaled(largest: int, kind: str) -> np.ndarray:
    return (RAMP * largest).round().astype(kind)


def tiff(values: bytes, bits: int, *, order: str = "<", white: int = 1, form: int = 1) -> bytes:
    """A grey 16 x 16 TIFF in one strip (TIFF 6.0): what PIL itself does not write."""
    entries = [
        (256, 3, 16),
        (257, 3, 16),
        (258, 3, bits),
        (259, 3, 1),
        (262, 3, white),
        (273, 4, 8),
        (277, 3, 1),
        (278, 3, 16),
        (279, 4, len(values)),
        (339, 3, form),
    ]
    directory = struct.pack(f"{order}H", len(entries))
    for tag, kind, value in entries:
        held = struct.pack(f"{order}HH", value, 0) if kind == 3 else struct.pack(f"{order}I", value)
        directory += struct.pack(f"{order}HHI", tag, kind, 1) + held
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(values))
    return head + values + directory + bytes(4)


def twelve_bits() -> bytes:
    pairs = scaled(4095, "u2").reshape(-1, 2).tolist()
    return b"".join(bytes((one >> 4, (one & 15) << 4 | two >> 8, two & 255)) for one, two in pairs)


def saved(path: Path, kind: str) -> Path:
    """The ramp from black to white as one kind of file."""
    eight, sixteen = Image.fromarray(scaled(255, "u1")), Image.fromarray(scaled(65535, "u2"))
    files: dict[str, Any] = {
        "grey.png": eight,
        "sixteen.png": sixteen,
        "sixteen.tif": sixteen,
        "sixteen.pgm": sixteen,
        "twelve.pgm": b"P5 16 16 4095\n" + scaled(4095, ">u2").tobytes(),
        "big-endian.tif": tiff(scaled(65535, ">u2").tobytes(), 16, order=">"),
        "white-is-zero.tif": tiff((65535 - scaled(65535, "u2")).tobytes(), 16, white=0),
        "twelve.tif": tiff(twelve_bits(), 12),
        "grey-alpha.png": eight.convert("LA"),
        "rgba.png": eight.convert("RGBA"),
        "cmyk.tif": eight.convert("RGB").convert("CMYK"),
        "ycbcr.tif": eight.convert("RGB").convert("YCbCr"),
        "palette.png": eight.convert("P"),
        "float.tif": Image.fromarray(RAMP.astype("f4")),
        "32 bits.tif": Image.fromarray(scaled(65535, "i4")),
        "signed.tif": tiff(scaled(65535, "u2").tobytes(), 16, form=2),
        "signed bytes.tif": tiff(scaled(255, "u1").tobytes(), 8, form=2),
        "lab.tif": Image.merge("LAB", [eight, eight, eight]),
    }
    path.mkdir(parents=True, exist_ok=True)
    if isinstance(files[kind], bytes):
        (path / kind).write_bytes(files[kind])
    else:
        files[kind].save(path / kind, **({"transparency": 0} if kind == "palette.png" else {}))
    return path / kind


READ = (
    "grey.png",
    "sixteen.png",
    "sixteen.tif",
    "sixteen.pgm",
    "twelve.pgm",
    "big-endian.tif",
    "white-is-zero.tif",
    "twelve.tif",
    "grey-alpha.png",
    "rgba.png",
    "cmyk.tif",
    "ycbcr.tif",
    "palette.png",
)
REFUSED = ("float.tif", "32 bits.tif", "signed.tif", "signed bytes.tif", "lab.tif")


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("kind", READ)
def test_black_is_0_and_white_255_whatever_holds_the_values(tmp_path: Path, kind: str, mode: str) -> None:
    image = decode_image(saved(tmp_path, kind), mode)
    assert image.mode == mode
    assert np.abs(np.asarray(image).reshape(16, 16, -1)[..., 0] - RAMP * 255).max() <= 1


@pytest.mark.parametrize("kind", REFUSED)
def test_values_of_no_known_range_are_refused_with_the_file_and_what_to_do(tmp_path: Path, kind: str) -> None:
    write_tree(tmp_path)
    path = saved(tmp_path / "cat", kind)
    with pytest.raises(DataError) as caught:
        decode_image(path, "RGB")
    assert str(caught.value).startswith(f"{path}: it holds ")
    assert "Save it " in str(caught.value)
    with pytest.raises(ConfigError, match="it holds "):
        build_cases(config(tmp_path), "cpu")


def test_images_of_other_data_sets_go_the_same_way(tmp_path: Path) -> None:
    from bench.workload.images import TransformedSamples, build_transform

    info = describe_dataset(Choice("mnist"))
    ramp = Image.fromarray(np.resize(scaled(65535, "u2"), (28, 28)))
    image, _ = TransformedSamples([(ramp, 0)], build_transform(info))[0]
    values = image * 0.3081 + 0.1307
    assert abs(float(values.mean()) - 0.5) < 0.05
    with pytest.raises(DataError, match=r"^image 0 of the data set: it holds floating-point values"):
        TransformedSamples([(ramp.convert("F"), 0)], build_transform(info))[0]


def test_a_big_endian_image_in_memory_is_scaled(tmp_path: Path) -> None:
    image = Image.frombytes("I;16B", (16, 16), scaled(65535, ">u2").tobytes())
    assert np.abs(np.asarray(convert_image(image, "L")) - RAMP * 255).max() <= 1


def test_the_first_frame_counts_and_nothing_is_turned(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 2), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "b.png", format="GIF", save_all=True, append_images=frames[1:])
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    frames[0].save(tmp_path / "c.png", exif=exif)
    for name in "abc":
        image = decode_image(tmp_path / f"{name}.png", "RGB")
        assert image.size == (4, 2)
        assert image.getpixel((0, 0)) == (255, 0, 0) or name == "b"


def test_the_picture_shows_a_16_bit_image_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench import gallery

    for name in ("cat", "dog"):
        saved(tmp_path / name, "sixteen.png")
    drawn: list[Any] = []
    monkeypatch.setattr(gallery, "_draw", lambda pictures, title, target: drawn.extend(pictures))
    gallery.render_samples(Choice.of("folder", {"path": str(tmp_path)}), tmp_path, tmp_path / "a.png", count=2)
    assert len(drawn) == 2
    for picture, _ in drawn:
        assert abs(float(picture.mean()) - 0.5) < 0.01
