"""Small data set files as the real ones are written: idx, CIFAR batches, trees of images."""

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
from PIL import Image


def idx_bytes(array):
    array = np.asarray(array, dtype=np.uint8)
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def grey_images(count, seed=0):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, 28, 28), dtype=np.uint8), np.arange(count, dtype=np.uint8) % 10


def write_idx(folder, images, labels, part="train", gzipped=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
        content = idx_bytes(array)
        if gzipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


def colour_images(count, seed=0, classes=10):
    """Images `(N, 32, 32, 3)` and their labels."""
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), [at % classes for at in range(count)]


def batch_dictionary(images, labels, label_key="labels"):
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), 3072)
    return {b"batch_label": b"a batch", label_key.encode(): labels, b"data": planes, b"filenames": [b"x.png"]}


def write_cifar10(root, images, labels, protocol=2):
    """The five training batches and the test batch, an equal share of the images in each."""
    folder = Path(root) / "cifar-10-batches-py"
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for name, some in zip(names, np.array_split(np.arange(len(images)), 6), strict=True):
        batch = batch_dictionary(images[some], [labels[at] for at in some])
        (folder / name).write_bytes(pickle.dumps(batch, protocol=protocol))
    return folder


def python2_batch(images, labels):
    """A batch as Python 2 and numpy 1 pickled the real ones: text keys, the array's bytes as a byte string."""

    def short(text):
        return b"U" + bytes([len(text)]) + text

    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).tobytes()
    data_type = b"cnumpy\ndtype\n" + short(b"u1") + b"K\x00K\x01\x87R(K\x03" + short(b"|") + b"NNNJ\xff\xff\xff\xff"
    data_type += b"J\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + short(b"b") + b"\x87R(K\x01M"
    array += struct.pack("<H", len(images)) + b"M" + struct.pack("<H", 3072) + b"\x86" + data_type + b"\x89"
    array += b"T" + struct.pack("<I", len(planes)) + planes + b"tb"
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + short(b"data") + array + short(b"labels") + listed + b"u."


def write_tree(folder, classes=("cat", "dog"), count=3, size=(20, 30)):
    """A folder of PNG and JPEG photographs a class; the first of each class is grey."""
    random = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            shape = size if number == 0 else (*size, 3)
            image = Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8))
            image.save(folder / name / f"{number}.{'jpg' if number % 2 else 'png'}")
    return folder


def damage(path, change):
    path.write_bytes(change(path.read_bytes()))


def pixels(sample):
    return np.asarray(sample[0])
