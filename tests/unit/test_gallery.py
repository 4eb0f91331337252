"""Pictures of samples: what is drawn is what the files hold, with its label."""

import functools

import numpy as np
import pytest

from bench.catalog import describe_dataset, parse_choice
from bench.errors import BenchError
from bench.records import Choice
from tests.unit.written_files import colour_images, grey_images, pixels, write_cifar10, write_idx, write_tree


@pytest.mark.parametrize("text", ["mnist", "cifar10", "folder"])
def test_normalisation_undone_gives_the_pixels_written(tmp_path, text, monkeypatch):
    from bench.workload.images import build_transform, undo_normalisation

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
    from bench import gallery

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
    from bench import gallery

    write_cifar10(tmp_path, *colour_images(18))
    draw = functools.partial(gallery.render_samples, Choice("cifar10"), tmp_path, count=5)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        draw(tmp_path / "pictures" / f"{name}.png", seed=seed)
    a, b, c = (path.read_bytes() for path in sorted((tmp_path / "pictures").iterdir()))
    assert a[:8] == b"\x89PNG\r\n\x1a\n" and a == b != c


def test_every_picture_of_the_grid_is_drawn(tmp_path):
    from PIL import Image

    from bench import gallery

    images = np.zeros((18, 32, 32, 3), dtype=np.uint8)
    images[...] = (250, 0, 0)
    write_cifar10(tmp_path, images, [0] * 18)
    gallery.render_samples(Choice("cifar10"), tmp_path, tmp_path / "a.png", count=9)
    with Image.open(tmp_path / "a.png") as picture:
        red = (np.asarray(picture.convert("RGB")) == (250, 0, 0)).all(-1)
    assert red.mean() > 0.5


def test_picture_of_synthetic_images_says_so(tmp_path, monkeypatch):
    from bench import gallery

    titles = []
    monkeypatch.setattr(gallery, "_draw", lambda pictures, title, target: titles.append(title))
    assert gallery.render_samples(Choice("cifar10"), tmp_path, tmp_path / "a.png") == "synthetic"
    assert titles == ["cifar10: 16 of 50,000 train samples, synthetic images"]


@pytest.mark.parametrize("settings", [{"split": "valid"}, {"count": 0}, {"count": 10_000}])
def test_picture_refuses_what_it_cannot_show(tmp_path, settings):
    from bench import gallery

    with pytest.raises(BenchError, match="Allowed: "):
        gallery.render_samples(Choice("cifar10"), tmp_path, tmp_path / "a.png", **settings)
    assert not (tmp_path / "a.png").exists()
