"""Downloads: whole or not at all, bounded in time, and one line when they fail."""

import io
import os
import time
from pathlib import Path
from urllib.error import URLError

import pytest

from bench.catalog import data_fetch, describe_dataset
from bench.errors import DataError
from bench.launchers import LocalLauncher
from bench.records import Choice
from tests.unit.written_files import grey_images, write_idx


@pytest.fixture
def reachable(monkeypatch):
    """Pretend that every host answers."""
    monkeypatch.setattr(data_fetch, "_unreachable", lambda class_name: None)


def writes(argument, send):
    """A download that goes well, as `download_task`."""
    raw = Path(argument[1]) / "MNIST/raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for name in ("images-idx3-ubyte", "labels-idx1-ubyte", "labels-idx1-ubyte.gz"):
            (raw / f"{part}-{name}").write_bytes(b"x")
    return {"reason": None}


def fails(argument, send):
    print("Downloading")
    return {**writes(argument, send), "reason": "no route to host"}


def dies(argument, send):
    writes(argument, send)
    os._exit(7)


def stalls(argument, send):
    writes(argument, send)
    time.sleep(200)


def grows(class_name, folder):
    """In place of torchvision's download: slowly, a byte at a time."""
    for number in range(5):
        (Path(folder) / str(number)).write_bytes(b"x")
        time.sleep(0.6)


def grows_slowly(argument, send):
    data_fetch.download = grows
    return data_fetch.download_task(argument, send)


def finds_torchvision(argument, send):
    import torchvision

    return {"reason": None if "site-packages" in torchvision.__file__ else torchvision.__file__}


@pytest.mark.usefixtures("reachable")
def test_fetched_files_are_moved_into_place(tmp_path, monkeypatch):
    monkeypatch.setattr(data_fetch, "download_task", writes)
    root = tmp_path / "new" / "data"
    assert data_fetch.fetch_dataset(Choice("mnist"), root) == root
    assert describe_dataset(Choice("mnist")).on_disk(root)
    assert len([path for path in root.rglob("*") if path.is_file()]) == 4 and not list(root.glob(".fetch*"))


@pytest.mark.usefixtures("reachable")
def test_failed_download_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(data_fetch, "download_task", fails)
    with pytest.raises(DataError) as caught:
        data_fetch.fetch_dataset(Choice("mnist"), tmp_path)
    message = str(caught.value)
    assert "\n" not in message and "the download failed: no route to host." in message and "Downloading" not in message
    assert str(tmp_path / "MNIST/raw") in message and "synthetic" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("reachable")
def test_download_that_dies_without_a_word_is_told_by_its_exit_code(tmp_path, monkeypatch):
    monkeypatch.setattr(data_fetch, "download_task", dies)
    with pytest.raises(DataError, match="exited with code 7"):
        data_fetch.fetch_dataset(Choice("mnist"), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("reachable")
def test_stalled_download_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(data_fetch, "STALL_TIMEOUT_S", 5.0)
    monkeypatch.setattr(data_fetch, "download_task", stalls)
    with pytest.raises(DataError, match="no response for"):
        data_fetch.fetch_dataset(Choice("mnist"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_slow_download_that_grows_may_take_its_time(tmp_path, monkeypatch):
    launcher = LocalLauncher()
    launcher.run(writes, ("MNIST", str(tmp_path / "warm")), timeout_s=60, bare=True)
    monkeypatch.setattr(data_fetch, "STALL_TIMEOUT_S", 2.0)
    monkeypatch.setattr(data_fetch, "download_task", grows_slowly)
    assert data_fetch._run_download(launcher, "MNIST", str(tmp_path)) is None


def test_files_that_are_there_are_not_fetched_again(tmp_path, monkeypatch):
    write_idx(tmp_path / "MNIST/raw", *grey_images(3))
    monkeypatch.setattr(data_fetch, "download_task", fails)
    assert data_fetch.fetch_dataset(Choice("mnist"), tmp_path) == tmp_path


def test_set_without_files_cannot_be_fetched(tmp_path):
    with pytest.raises(DataError, match="imagenet: nothing to download"):
        data_fetch.fetch_dataset(Choice("imagenet"), tmp_path)


@pytest.mark.usefixtures("reachable")
def test_root_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write to .*/file: "):
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
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise SystemExit('not torchvision')")
    monkeypatch.setattr(data_fetch, "download_task", finds_torchvision)
    assert data_fetch._run_download(LocalLauncher(), "MNIST", str(tmp_path)) is None


def no_proxy(monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_machine_without_a_network_hears_so_before_anything_is_imported(tmp_path, monkeypatch):
    no_proxy(monkeypatch)

    def refuse(address, timeout):
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr(data_fetch.socket, "create_connection", refuse)
    monkeypatch.setattr(data_fetch, "_run_download", None)
    with pytest.raises(
        DataError, match=r"^CIFAR10: no network \(www.cs.toronto.edu: Name or service not known\)\. Copy the"
    ):
        data_fetch.fetch_dataset(Choice("cifar10"), tmp_path)


def test_host_that_never_answers_is_given_up_after_seconds(monkeypatch):
    no_proxy(monkeypatch)
    monkeypatch.setattr(data_fetch, "CONNECT_TIMEOUT_S", 0.05)

    def answers_late(address, timeout):
        time.sleep(0.5)
        return io.BytesIO()  # something to close

    monkeypatch.setattr(data_fetch.socket, "create_connection", answers_late)
    assert data_fetch._unreachable("MNIST") == "ossci-datasets.s3.amazonaws.com does not respond"


def test_behind_a_proxy_no_connection_is_tried(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")
    monkeypatch.setattr(data_fetch.socket, "create_connection", None)
    assert data_fetch._unreachable("MNIST") is None


def test_every_set_that_can_be_fetched_has_its_host():
    for name in ("mnist", "fashion_mnist", "cifar10", "cifar100"):
        assert describe_dataset(Choice(name)).fetch is not None
    assert set(data_fetch.HOSTS) == {"MNIST", "FashionMNIST", "CIFAR10", "CIFAR100"}
