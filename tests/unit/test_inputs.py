"""The data path: shapes, strides, seeds, what is real and what is synthetic, and workers that end with their run."""

import dataclasses
import itertools
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from bench.catalog import DatasetInfo, describe_dataset, idx_files, parse_choice
from bench.errors import DataError, Unsupported
from bench.records import Case, Choice, ImageSpec, Protocol
from tests.unit.written_files import colour_images, grey_images, write_cifar10, write_idx, write_tree

PATHS = ("synthetic", "cached", "loader")


@pytest.fixture(autouse=True)
def no_debian_package(monkeypatch):
    monkeypatch.setattr(idx_files, "DEBIAN_FOLDERS", {})


@pytest.fixture
def mnist_root(tmp_path):
    """Twenty images; each one's label is its number modulo 10, its first pixel its number."""
    images, labels = grey_images(20)
    images[:, 0, 0] = np.arange(20)
    write_idx(tmp_path / "MNIST/raw", images, labels)
    return tmp_path


def made(root, dataset="mnist", **settings):
    """The inputs of a case, and its description; `workers` and `seed` belong to the protocol."""
    from bench.workload.inputs import build_inputs

    protocol = Protocol(data_root=str(root), loader_workers=settings.pop("workers", 0), seed=settings.pop("seed", 42))
    choice = parse_choice("dataset", dataset)
    case = Case(choice, Choice("mlp"), Choice("sgd"), **{"batch_size": 4, **settings})
    return build_inputs(case, describe_dataset(choice), protocol, torch.device("cpu"))


def taken(inputs, count):
    with inputs:
        return list(itertools.islice(inputs, count))


def numbers(images):
    """Which images of `mnist_root` these are, by their first pixels."""
    return ((images[:, 0, 0, 0] * 0.3081 + 0.1307) * 255).round().int().tolist()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("dataset", "shape", "classes"),
    [
        ("mnist", (4, 1, 28, 28), 10),
        ("fashion_mnist", (4, 1, 28, 28), 10),
        ("cifar10", (4, 3, 32, 32), 10),
        ("cifar100", (4, 3, 32, 32), 100),
        ("imagenet", (4, 3, 224, 224), 1000),
    ],
)
def test_batches_have_the_shape_type_and_layout_of_the_case(tmp_path, path, layout, dataset, shape, classes):
    images, labels = next(made(tmp_path, dataset, input=path, memory_format=layout))
    assert images.shape == shape and images.dtype == torch.float32 and images.device == torch.device("cpu")
    assert labels.shape == (4,) and labels.dtype == torch.int64 and labels.min() >= 0 and labels.max() < classes
    wanted = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    assert images.is_contiguous(memory_format=wanted)
    if shape[1] > 1:
        assert images.stride()[1] == (1 if layout == "channels_last" else shape[2] * shape[3])


@pytest.mark.parametrize("path", PATHS)
def test_image_size_of_the_case_is_the_size_of_its_images(mnist_root, path):
    images, _ = next(made(mnist_root, input=path, image_size=40))
    assert images.shape == (4, 1, 40, 40)


@pytest.mark.parametrize("path", PATHS)
def test_same_seed_gives_the_same_batches_and_another_seed_others(mnist_root, path):
    first, again, other = (taken(made(mnist_root, input=path, seed=seed), 3) for seed in (1, 1, 2))
    assert all((a[0] == b[0]).all() and (a[1] == b[1]).all() for a, b in zip(first, again, strict=True))
    assert not all((a[0] == b[0]).all() for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("path", PATHS)
def test_building_inputs_leaves_torchs_own_random_numbers_alone(mnist_root, path):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    taken(made(mnist_root, input=path, workers=1), 2)
    assert (torch.get_rng_state() == before).all()


def test_synthetic_batch_is_made_once_and_is_normally_distributed(mnist_root):
    inputs = made(mnist_root, input="synthetic", batch_size=64)
    (images, labels), (again, labels_again) = taken(inputs, 2)
    assert images is again and labels is labels_again and (inputs.data_source, inputs.note) == ("synthetic", None)
    assert abs(images.mean()) < 0.05 and abs(images.std() - 1) < 0.05


# cached


def test_cached_batches_are_real_images_normalised(mnist_root):
    inputs = made(mnist_root, input="cached")
    batches = taken(inputs, 5)
    assert (inputs.data_source, inputs.note) == ("files", None)
    drawn = [number for images, _ in batches for number in numbers(images)]
    assert sorted(drawn) == list(range(20))
    assert [number % 10 for number in drawn] == [label for _, labels in batches for label in labels.tolist()]


def test_each_step_gets_a_copy_of_a_cached_batch(mnist_root):
    inputs = made(mnist_root, input="cached", batch_size=20)
    held = next(inputs)[0].clone()
    for images, _ in itertools.islice(inputs, 8):
        images.zero_()
    later = [images for images, _ in itertools.islice(inputs, 8)]
    assert any((images == held).all() for images in later) and all(images.any() for images in later)


@pytest.mark.parametrize(
    ("limits", "batches"),
    [({}, 8), ({"CACHED_SAMPLES": 12}, 3), ({"CACHED_BYTES": 2 * 4 * 3136 + 1}, 2), ({"CACHED_BYTES": 1}, 1)],
)
def test_cache_holds_no_more_than_its_limits_and_one_batch_at_least(mnist_root, monkeypatch, limits, batches):
    from bench.workload import inputs as inputs_module

    for name, value in limits.items():
        monkeypatch.setattr(inputs_module, name, value)
    handed = [images.sum().item() for images, _ in taken(made(mnist_root, input="cached"), 20)]
    assert handed[:batches] == handed[batches : 2 * batches] and len(set(handed)) == batches


def test_filling_the_cache_leaves_torchs_threads_as_they_were(mnist_root, monkeypatch):
    from bench.workload import inputs as inputs_module

    used = []
    original = inputs_module.TransformedSamples.__getitem__
    monkeypatch.setattr(
        inputs_module.TransformedSamples,
        "__getitem__",
        lambda self, index: used.append(torch.get_num_threads()) or original(self, index),
    )
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        made(mnist_root, input="cached")
        assert set(used) == {1} and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


# loader


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_gives_every_image_once_an_epoch_in_another_order_each(mnist_root, workers):
    batches = taken(made(mnist_root, input="loader", workers=workers), 10)
    drawn = [number for images, _ in batches for number in numbers(images)]
    first, second = drawn[:20], drawn[20:]
    assert sorted(first) == sorted(second) == list(range(20)) and first != second and first != sorted(first)
    assert [number % 10 for number in drawn] == [label for _, labels in batches for label in labels.tolist()]


def test_number_of_workers_changes_no_batch(mnist_root):
    alone, shared = (taken(made(mnist_root, input="loader", workers=workers), 6) for workers in (0, 2))
    assert all((a[0] == b[0]).all() for a, b in zip(alone, shared, strict=True))


def test_batch_larger_than_the_data_set_takes_images_again(mnist_root):
    images, labels = next(made(mnist_root, input="loader", batch_size=50))
    counts = np.bincount(numbers(images), minlength=20)
    assert len(labels) == 50 and counts.min() == 2 and counts.max() == 3


def test_loader_resizes_a_tree_of_photographs_to_rgb(tmp_path):
    write_tree(tmp_path)
    inputs = made(tmp_path, f"folder:{tmp_path}", input="loader", batch_size=6, image_size=32)
    images, labels = next(inputs)
    assert images.shape == (6, 3, 32, 32) and sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1]
    assert inputs.data_source == "files"


def test_loader_scales_and_normalises_as_documented(tmp_path):
    images, labels = colour_images(18)
    images[...] = (255, 0, 51)
    write_cifar10(tmp_path, images, labels)
    batch, _ = next(made(tmp_path, "cifar10", input="loader"))
    assert batch[:, :, 0, 0].tolist() == [pytest.approx([1.0, -1.0, -0.6])] * 4


@pytest.mark.parametrize("workers", [0, 2])
def test_image_that_cannot_be_decoded_is_one_line_from_any_process(tmp_path, workers):
    write_tree(tmp_path)
    (tmp_path / "dog/1.jpg").write_bytes(b"no image")
    with (
        made(tmp_path, f"folder:{tmp_path}", input="loader", batch_size=6, workers=workers) as inputs,
        pytest.raises(DataError) as caught,
    ):
        next(inputs)
    assert str(caught.value).startswith(f"{tmp_path / 'dog/1.jpg'}: PIL cannot decode it as an image: ")
    assert "\n" not in str(caught.value)


def test_exhausted_shared_memory_says_how_to_get_more(mnist_root, monkeypatch):
    from bench.workload import inputs as inputs_module

    class Starved:
        def __next__(self):
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that ...")

        def __iter__(self):
            return self

    monkeypatch.setattr(inputs_module, "DataLoader", lambda *args, **settings: Starved())
    with pytest.raises(
        DataError, match=r"^the loader's 2 workers: /dev/shm is (or was )?full.* --shm-size=8g or --ipc=host"
    ):
        next(made(mnist_root, input="loader", workers=2))


def test_damaged_files_are_an_error_and_never_replaced_by_synthetic_images(mnist_root):
    path = mnist_root / "MNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="train-images-idx3-ubyte"):
        made(mnist_root, input="loader")


# Synthetic images where there are no files


@pytest.mark.parametrize("path", ["cached", "loader"])
def test_missing_files_give_synthetic_images_and_say_so_in_one_line(tmp_path, path):
    inputs = made(tmp_path, "cifar10", input=path)
    assert inputs.data_source == "synthetic"
    assert str(tmp_path) in inputs.note and "bench data fetch cifar10" in inputs.note and "\n" not in inputs.note
    images, _ = next(inputs)
    assert -1 <= images.min() < -0.9 and 0.9 < images.max() <= 1


def test_synthetic_images_are_the_same_for_the_same_index_and_seed():
    from bench.workload.images import SyntheticSamples

    info = describe_dataset(Choice("cifar10"))
    one, same, other = (SyntheticSamples(info, True, seed) for seed in (1, 1, 2))
    assert len(one) == 50_000 and one[3][0].size == (32, 32) and one[3][0].mode == "RGB"
    assert one[49_999][0].tobytes() == same[49_999][0].tobytes() != other[49_999][0].tobytes()
    assert one[3][0].tobytes() != one[4][0].tobytes()
    assert len({one[at][1] for at in range(1000)}) == 10
    with pytest.raises(IndexError):
        one[50_000]


def test_images_of_two_channels_are_unsupported_by_the_loader_alone(tmp_path):
    from bench.workload.inputs import build_inputs

    info = dataclasses.replace(describe_dataset(Choice("imagenet")), images=ImageSpec(2, 8, 8, 10))
    case = Case(Choice("imagenet"), Choice("mlp"), Choice("sgd"), 4, input="loader")
    with pytest.raises(Unsupported, match="2 channels"):
        build_inputs(case, info, Protocol(), torch.device("cpu"))
    images, _ = next(build_inputs(dataclasses.replace(case, input="synthetic"), info, Protocol(), torch.device("cpu")))
    assert images.shape == (4, 2, 8, 8)


def test_data_set_of_another_package_needs_no_more_than_its_description(tmp_path):
    from bench.workload.inputs import build_inputs

    images, labels = colour_images(10)

    class Samples:
        def __len__(self):
            return 10

        def __getitem__(self, index):
            from PIL import Image

            return Image.fromarray(images[index]).convert("L"), labels[index]

    info = DatasetInfo(
        ImageSpec(3, 32, 32, 10), (), (0.5,) * 3, (0.5,) * 3, 10, 0, lambda root: True, lambda root, train: Samples()
    )
    case = Case(Choice("theirs"), Choice("mlp"), Choice("sgd"), 4, input="loader")
    batch, _ = next(build_inputs(case, info, Protocol(loader_workers=0), torch.device("cpu")))
    assert batch.shape == (4, 3, 32, 32) and (batch[:, 0] == batch[:, 2]).all()


# Workers


def test_closing_ends_the_workers_and_may_be_done_twice(mnist_root):
    before = set(multiprocessing.active_children())  # of other tests: a process that asks cuDNN stays
    inputs = made(mnist_root, input="loader", workers=2)
    next(inputs)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    inputs.close()
    inputs.close()
    assert not any(worker.is_alive() for worker in workers)
    with pytest.raises(StopIteration):
        next(inputs)


def _run_with_workers(root, told):
    inputs = made(root, input="loader", workers=2)
    next(inputs)
    told.send([worker.pid for worker in multiprocessing.active_children()])
    time.sleep(60)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="asks Linux to end the workers")
def test_workers_end_at_once_with_a_run_that_is_killed(mnist_root):
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    run = context.Process(target=_run_with_workers, args=(mnist_root, there))
    run.start()
    workers = [psutil.Process(pid) for pid in here.recv()]
    os.kill(run.pid, signal.SIGKILL)
    run.join()
    _, alive = psutil.wait_procs(workers, timeout=2)
    assert len(workers) == 2 and not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


# how long making a batch takes


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loaders_batch_says_how_long_one_process_took_to_make_it(mnist_root, monkeypatch, workers):
    from bench.workload import inputs as module

    read = module.TransformedSamples.__getitem__

    def slow(self, index):
        time.sleep(0.01)
        return read(self, index)

    monkeypatch.setattr(module.TransformedSamples, "__getitem__", slow)
    with made(mnist_root, input="loader", workers=workers) as inputs:
        assert inputs.made_s is None
        for _ in range(3):
            next(inputs)
            assert inputs.made_s >= 0.04  # four images


@pytest.mark.parametrize("path", ["synthetic", "cached"])
def test_batches_that_no_loader_makes_say_nothing(mnist_root, path):
    with made(mnist_root, input=path) as inputs:
        next(inputs)
        assert inputs.made_s is None


@pytest.mark.parametrize(("path", "counted"), [("loader", 2), ("cached", 0)])
def test_a_step_counts_what_all_its_batches_took(mnist_root, path, counted):
    from bench.worker import _Intake

    with made(mnist_root, input=path) as inputs:
        intake = _Intake(inputs)
        batches = intake.batches()
        intake.begin_step()
        next(batches)
        intake.clear()
        for _ in range(2):
            intake.begin_step()
            next(batches), next(batches)
        fields = intake.fields()
    assert len(fields["data_wait_times_s"]) == 2 and len(fields["batch_made_times_s"]) == counted
    for waited, took in zip(fields["data_wait_times_s"], fields["batch_made_times_s"], strict=bool(counted)):
        assert 0 < took <= waited  # without workers a step waits for all of it
