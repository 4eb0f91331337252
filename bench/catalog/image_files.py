"""Trees of image files: which folders are classes, which are splits, whether they can be read, and their content.

torchvision's `ImageFolder` is the reference for which files count and in which order (torchvision/datasets/folder.py).
It takes every folder below the root for a class, also `train`, `__MACOSX` and what a file manager keeps its thumbnails
in, and follows links in circles; here, what is ambiguous or cannot be read is refused with its name. Torch-free, so
that the parent process may ask.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""The files that torchvision's `ImageFolder` reads as images (torchvision/datasets/folder.py: IMG_EXTENSIONS)."""

_SYSTEM_FOLDERS = (
    "__macosx",
    "lost+found",
    "system volume information",
    "$recycle.bin",
    "recycler",
    "recycled",
    "#recycle",
    "@recycle",
    "@eadir",
    "#snapshot",
    "@tmp",
    "__pycache__",
    "cvs",
)
"""Folders of operating systems, file servers and tools, in lower case; like hidden ones (`.git`) never classes."""

MOST_FOLDERS = 500_000
"""More are not a tree of classes (ImageNet-21k has 21,841), but a home folder, a disk, or circular links."""
DEEPEST = 100

CHECKED_SIZES, CHECKED_HEADERS, DECODED = 10_000, 500, 32
"""How many files, evenly spread over the tree, are looked at before a sweep: for their size, their header, whole."""

HASHED_SIZES, HASHED_CONTENTS, HASHED_HEAD_BYTES, HASHED_BYTES = 100_000, 2_000, 256 << 10, 64 << 20
"""What a fingerprint holds beside all names: the sizes of so many files, the heads of so many, in all so many bytes."""

WANTED = "Expected: one folder of images for each class, or train and val (or test) with such folders in each"
_SORT = "sort the images into a folder for each class"


def shown(path: str | os.PathLike[str]) -> str:
    """A path as text that any terminal, file and table takes: what cannot be printed is escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


@dataclass(frozen=True, slots=True)
class ImageTree:
    """An image tree as it is understood.

    Attributes:
        train: The folder that holds the class folders of the training part.
        test: That of the held-out part (`val` before `test`); `train` where there is none.
        class_names: The training part's class folders, sorted; a class's label is its place here, in both parts.
        train_samples: Images below the class folders of the training part, at any depth.
        test_samples: Those of the held-out part in folders that are classes of the training part too.
        notes: What was skipped or is ambiguous; one sentence each.
    """

    train: Path
    test: Path
    class_names: tuple[str, ...]
    train_samples: int
    test_samples: int
    notes: tuple[str, ...] = ()

    def files(self, train: bool) -> Iterator[tuple[str, int]]:
        """The images of a part relative to its folder, each with its label, in the order of torchvision's own.

        Raises:
            DataError: The tree has changed, and can no longer be read.
        """
        return list_images(self.train if train else self.test, self.class_names)


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder as it was found.

    Attributes:
        path: Where it lies.
        images: Images in the folder itself.
        kids: The folders in it, hidden and system ones left out, in the order of their names.
        faults: What cannot be read in the folder itself.
        suffixes: The endings of files that are not images, with how many there are.
    """

    path: Path
    images: int = 0
    kids: Mapping[str, _Folder] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    suffixes: Mapping[str, int] = field(default_factory=dict)
    total: int = 0  # images in it, at any depth

    @property
    def holding(self) -> dict[str, _Folder]:
        """The folders in it that hold images, at any depth."""
        return {name: kid for name, kid in self.kids.items() if kid.total}

    def all_faults(self) -> Iterator[str]:
        """What cannot be read in it, at any depth."""
        yield from self.faults
        for kid in self.kids.values():
            yield from kid.all_faults()

    def all_suffixes(self) -> Counter[str]:
        """The endings of other files in it, at any depth."""
        return sum((kid.all_suffixes() for kid in self.kids.values()), Counter(self.suffixes))


def read_tree(folder: Path, *, fewest_classes: int = 2) -> ImageTree:
    """Find the classes and parts of an image tree, and count its images; no file is opened.

    Args:
        folder: The tree.
        fewest_classes: A tree with fewer is refused: it is most likely named one level too high or too low.

    Raises:
        DataError: There is no such folder, its classes and parts cannot be told apart, or something in it cannot be
            read; the message says what was found and what is expected.
    """
    try:
        folder = folder.expanduser()
        reason = None if stat.S_ISDIR(folder.stat().st_mode) else "not a folder"
        str(folder).encode()
    except UnicodeEncodeError:
        reason = "its name is not text in UTF-8, the encoding of stored results"
    except (OSError, ValueError, RuntimeError) as error:  # a zero byte; the home folder of nobody
        reason = getattr(error, "strerror", None) or str(error)
    if reason:
        raise DataError(f"{shown(folder)}: {reason}. Give a folder with one folder of images per class")
    return _understood(_read(folder, [], [0]), fewest_classes)


# reading


def _read(path: Path, above: list[tuple[int, int]], seen: list[int]) -> _Folder:
    """A folder and all that is in it; `above` holds device and number of the folders that it lies in."""
    seen[0] += 1
    if seen[0] > MOST_FOLDERS:
        raise DataError(f"{shown(path)}: more than {MOST_FOLDERS:,} folders, too many for a tree of images. {WANTED}")
    try:
        status = path.stat()
        here = (status.st_dev, status.st_ino)
        if here in above:
            return _Folder(path, faults=(f"{shown(path)}: a link back to a parent folder. Remove the link",))
        if len(above) >= DEEPEST:
            return _Folder(path, faults=(f"{shown(path)}: more than {DEEPEST} folders deep. Move its images up",))
        images, folders, others, faults = _entries(path)
    except OSError as error:
        return _Folder(path, faults=(f"{shown(path)}: {error.strerror}. Make it readable, or move it elsewhere",))
    kids = {name: _read(path / name, [*above, here], seen) for name in sorted(folders)}
    total = len(images) + sum(kid.total for kid in kids.values())
    suffixes = Counter(Path(name).suffix.lower() or "no ending" for name in others)
    return _Folder(path, len(images), kids, tuple(sorted(faults)), suffixes, total)


def _entries(path: Path) -> tuple[list[str], list[str], list[str], list[str]]:
    """The names of a folder's images, folders and other files, and what is wrong; hidden and system ones left out."""
    images, folders, others, faults = [], [], [], []
    with os.scandir(path) as found:
        for item in found:
            name = item.name
            if name.startswith(".") or name.lower() in _SYSTEM_FOLDERS:
                continue
            is_image = name.lower().endswith(IMAGE_SUFFIXES)
            try:
                if item.is_dir():
                    folders.append(name)
                elif not is_image and (item.is_file() or Path(name).suffix or not item.is_symlink()):
                    others.append(name)
                elif item.is_file():
                    images.append(name)
                else:
                    what = "a broken link" if item.is_symlink() else "not a regular file"
                    faults.append(f"{shown(item.path)}: {what}. Remove it, or put an image there")
            except OSError as error:  # a link to itself
                faults.append(f"{shown(item.path)}: {error.strerror}. Remove it, or put an image there")
    return images, folders, others, faults


def list_images(folder: Path, class_names: Sequence[str]) -> Iterator[tuple[str, int]]:
    """The images below class folders, relative to `folder`, each with the place of its class in `class_names`.

    Those of `class_names` that are not there have none. The order is that of torchvision's `ImageFolder`.

    Raises:
        DataError: A folder cannot be read.
    """
    for label, name in enumerate(class_names):
        waiting, found = [(name, 0)], []
        while waiting:
            place, depth = waiting.pop()
            try:
                images, folders, _, _ = _entries(folder / place)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise DataError(f"{shown(folder / place)}: {error.strerror}. Make it readable, or move it") from error
            found.append((place, sorted(images)))
            if depth < DEEPEST:
                waiting += [(f"{place}/{kid}", depth + 1) for kid in folders]
        for place, images in sorted(found):
            yield from ((f"{place}/{image}", label) for image in images)


# understanding

_ROLES = {
    word: role
    for role, words in {
        "train": "train training trainval trn",
        "val": "val valid validation validate validating dev devel development eval evaluation",
        "test": "test testing tst holdout",
    }.items()
    for word in words.split()
}
_FILLERS = re.compile(r"(set|data|dataset|split|part|images|image|imgs|img|folder)$")
_NUMBERED = re.compile(r"(k?fold|split|part|subset|batch|partition|cv|chunk|shard)[\W_]*\d+", re.IGNORECASE)
"""Parts that have no role."""
_ALSO_CLASSES = ("train", "valid")
"""Roles' names that classes have too: what runs on rails, and the opposite of invalid."""


def _role(name: str) -> str | None:
    """Whether a folder is named like a part, and nothing else: `Train`, `training_set`, `val2017`; which one."""
    words = _words(name)
    return _ROLES.get(words[0]) if len(words) == 1 else None


def _words(name: str) -> list[str]:
    words = (_FILLERS.sub("", word) for word in re.findall(r"[^\W\d_]+", name.casefold()))
    return [word for word in words if word]


def _loose_role(name: str) -> str | None:
    """Which part a folder's name speaks of among other words: `seg_train`, `flowers-validation`."""
    roles = {_ROLES[word] for word in _words(name) if word in _ROLES}
    return roles.pop() if len(roles) == 1 else None


def _understood(folder: _Folder, fewest: int, notes: tuple[str, ...] = ()) -> ImageTree:
    """What a folder is: parts, classes, or one folder around those."""
    _refuse_faults(folder.faults)
    holding = folder.holding
    if not holding:
        raise DataError(_nothing_found(folder))
    for kid in folder.kids.values():  # what cannot be read may be a part or a class
        _refuse_faults(kid.faults)
    parts = _parts_of(holding)
    if parts:
        return _divided(folder, parts, fewest, notes)
    kid, *others = holding.values()
    if not others and kid.holding and not kid.images and (len(folder.kids) == 1 or _parts_of(kid.holding)):
        return _understood(kid, fewest, (*notes, f"{shown(kid.path)} is the folder used: only it contains images"))
    inside = {name: _parts_of(kid.holding) for name, kid in holding.items()}
    if found := [name for name, roles in inside.items() if len(set(roles.values())) > 1]:
        lies = " and ".join(shown(f"{found[0]}/{part}") for part in inside[found[0]])
        raise DataError(
            f"{shown(folder.path)}: its folders are divided into parts one by one ({lies}). {WANTED}: name the part "
            f"first, then the class, or give one of the folders alone, {shown(holding[found[0]].path)}"
        )
    if all(_NUMBERED.fullmatch(name) and kid.holding for name, kid in holding.items()):
        raise DataError(
            f"{shown(folder.path)}: its folders are named like parts, not classes ({_listed(holding)}). {WANTED}: "
            f"rename them, or give one of them alone, folder:{shown(kid.path)}"
        )
    names, count = _classes(folder, fewest)
    return ImageTree(folder.path, folder.path, names, count, count, (*notes, *_alike(holding)))


def _parts_of(holding: Mapping[str, _Folder]) -> dict[str, str]:
    """Which folders are parts, and of which role; empty if the folders are classes.

    A name with other words in it (`seg_train`) counts where it holds folders of images and stands beside another such
    part; one that classes have too counts where it does not stand beside folders that hold images directly, as it does.
    """
    exact = {name: role for name in holding if (role := _role(name))}
    loose = {
        name: role for name, kid in holding.items() if kid.holding and (role := exact.get(name) or _loose_role(name))
    }
    parts = exact
    if "train" in loose.values() and len(set(loose.values())) > 1:
        parts = exact | loose
    doubtful = len(parts) == 1 and len(holding) > 1
    return (
        {}
        if doubtful and all(_words(name)[0] in _ALSO_CLASSES and not holding[name].holding for name in parts)
        else parts
    )


def _divided(folder: _Folder, parts: Mapping[str, str], fewest: int, notes: tuple[str, ...]) -> ImageTree:
    """A folder some of whose folders are parts."""
    roles = _roles(folder, parts)
    train = roles.pop("train")
    if not train.holding:
        raise DataError(f"{shown(train.path)}: {_loose(train)}. {WANTED}: {_SORT}")
    if not roles:  # one folder around everything
        return _understood(train, fewest, notes)
    train = _unwrapped(train)
    names, count = _classes(train, fewest)
    for held_out in (_unwrapped(roles[role]) for role in ("val", "test") if role in roles):
        if not set(names) & set(held_out.holding):
            notes = (*notes, f"{shown(held_out.path)} has none of the classes of {shown(train.path)}, and is not read")
            continue
        _refuse_faults(held_out.all_faults())
        if missing := [name for name in names if name not in held_out.holding]:
            notes = (*notes, f"{shown(held_out.path)} has no images of {_listed(missing)}")
        if extra := [name for name in held_out.holding if name not in names]:
            what = "ignored, as they are not classes of the training split"
            notes = (*notes, f"{shown(held_out.path)} also has the folders {_listed(extra)}, {what}")
        found = sum(kid.total for name, kid in held_out.holding.items() if name in names)
        return ImageTree(train.path, held_out.path, names, count, found, notes)
    return ImageTree(train.path, train.path, names, count, count, notes)


def _roles(folder: _Folder, parts: Mapping[str, str]) -> dict[str, _Folder]:
    """The folder of each part, `train` among them. Raises DataError if they cannot be told from anything else."""
    at, holding = shown(folder.path), folder.holding
    if others := [name for name in holding if name not in parts]:
        raise DataError(
            f"{at}: it holds {_listed(parts)}, named like a part of a data set, beside {_listed(others)}. "
            f"{WANTED}: move or rename the one or the other, or give the folder of a part alone"
        )
    roles: dict[str, _Folder] = {}
    for name, role in parts.items():
        if role in roles:
            two = _listed(twin for twin, its in parts.items() if its == role)
            raise DataError(f"{at}: {two} are named like one part. {WANTED}: keep one, and rename or move the rest")
        roles[role] = holding[name]
    if "train" not in roles:
        first = next(iter(roles.values())).path
        raise DataError(
            f"{at}: it holds {_listed(parts)} and no train. {WANTED}: rename it, or give the folder of a part alone to "
            f"train on it, folder:{shown(first)}"
        )
    return roles


def _unwrapped(part: _Folder) -> _Folder:
    """The folder that holds a part's classes: some archives repeat the part's name, `seg_train/seg_train`."""
    while len(part.kids) == 1 and not part.images:
        ((name, kid),) = part.kids.items()
        if not kid.holding or name.casefold() != part.path.name.casefold():
            break
        part = kid
    return part


def _classes(folder: _Folder, fewest: int) -> tuple[tuple[str, ...], int]:
    """The names of the class folders in a folder, and the images in all of them."""
    _refuse_faults(folder.all_faults())
    if empty := [name for name, kid in folder.kids.items() if not kid.total]:
        first = folder.kids[empty[0]]
        more = f", nor in {_listed(empty[1:])}" if len(empty) > 1 else ""
        what = f"no images in this class folder{more}{_instead(first)}"
        raise DataError(f"{shown(first.path)}: {what}. Put images there, or remove the folder")
    if len(folder.kids) < fewest:
        ((name, kid),) = folder.kids.items()
        inside = f", and in it {_listed(kid.holding)}" if kid.holding else ""
        what = f"a single class folder, {shown(name)}{inside}, and a model needs at least two classes"
        raise DataError(f"{shown(folder.path)}: it has {what}. {WANTED}; give the folder that holds the class folders")
    return tuple(folder.kids), sum(kid.total for kid in folder.kids.values())


def _nothing_found(folder: _Folder) -> str:
    """Why a folder is not an image tree, where none of the folders in it holds an image."""
    at, other = shown(folder.path), _instead(folder)
    if fault := next(folder.all_faults(), None):
        return fault
    if folder.images:
        return f"{at}: {_loose(folder)}. {WANTED}: {_SORT}"
    if not folder.kids:
        return f"{at}: it has no class folders{other}. Put the images of each class into a folder of its own"
    where = "class folder" if len(folder.kids) == 1 else "class folders"
    return f"{at}: no images in its {len(folder.kids)} {where}{other}. JPEG, PNG, WebP, BMP, PPM, TIFF are read"


def _loose(folder: _Folder) -> str:
    """How many images lie in a folder that is to hold class folders."""
    return f"{folder.images:,} image{'s' * (folder.images != 1)} directly in it, and no class folders with images"


def _instead(folder: _Folder) -> str:
    """What a folder without images holds."""
    found = sorted(folder.all_suffixes().items(), key=lambda pair: (-pair[1], pair[0]))[:3]
    return f"; it holds {', '.join(f'{count:,} x {shown(suffix)}' for suffix, count in found)}" if found else ""


def _alike(holding: Mapping[str, _Folder]) -> tuple[str, ...]:
    """A word where all classes hold folders of the same names: those may be the classes, and these parts or domains."""
    inside = {tuple(kid.holding) for kid in holding.values()}
    if len(holding) < 2 or len(inside) > 1 or len(names := inside.pop()) < 2:
        return ()
    first = next(iter(holding.values()))
    return (
        f"the classes are {_listed(holding)}, each with the folders {_listed(names)}; if those are the classes, give "
        f"one of the folders alone, folder:{shown(first.path)}",
    )


def _refuse_faults(faults: Iterable[str]) -> None:
    for fault in faults:
        raise DataError(fault)


def _listed(names: Iterable[str], most: int = 4) -> str:
    """Names for a message, the first few of many."""
    told = [shown(name) for name in names]
    more = f" and {len(told) - most} more" if len(told) > most else ""
    return ", ".join(told[:most]) + more


# looking into files


def check_images(tree: ImageTree) -> None:
    """Look into a bounded number of training images, evenly spread, so that most bad trees are refused before a run.

    Of at most 10,000 files the size is read, of 500 the header, and 32 are decoded whole. A damaged file among many may
    be missed; the run that meets it then names it.

    Raises:
        DataError: A file is empty, not an image, damaged, or of a kind that cannot be scaled; it is named.
    """
    from PIL import Image

    files = [name for name, _ in tree.files(train=True)]
    for name in _spread(files, CHECKED_SIZES):
        _size_bytes(tree.train / name)
    for name in _spread(files, CHECKED_HEADERS):
        with _typed_faults(tree.train / name), Image.open(tree.train / name) as image:
            _largest_value(image)
    for name in _spread(files, DECODED):
        decode_image(tree.train / name, "RGB")


def fingerprint(tree: ImageTree) -> str:
    """16 digits for what the training part holds: the same for a copied tree, wherever and whenever it was copied.

    All names are taken in; of at most 100,000 files (drawn by a hash of their names) the size; and of at most 2,000,
    until 64 MiB are read, the first 256 KiB. Times are not. So any file added, removed or renamed changes it, and in
    trees of up to 2,000 small images any change of content; in larger trees, a file replaced by one of the same size
    may pass unnoticed, another data set under the same names never.

    Raises:
        DataError: A file cannot be read, or is empty.
    """
    found = hashlib.sha256()
    files = [os.fsencode(name) for name, _ in tree.files(train=True)]
    for name in files:
        found.update(name + b"\0")
    files.sort(key=lambda name: (zlib.crc32(name), name))
    for name in files[:HASHED_SIZES]:
        found.update(struct.pack("<q", _size_bytes(tree.train / os.fsdecode(name))))
    left_bytes = HASHED_BYTES
    for name in files[:HASHED_CONTENTS]:
        path = tree.train / os.fsdecode(name)
        with _typed_faults(path), path.open("rb") as stream:
            head = stream.read(min(HASHED_HEAD_BYTES, left_bytes))
        found.update(head)
        left_bytes -= len(head)
        if left_bytes <= 0:
            break
    return found.hexdigest()[:16]


def _spread(files: Sequence[str], most: int) -> list[str]:
    """At most so many of the files, evenly spread, so that every class has its share."""
    count = min(most, len(files))
    return [files[at * len(files) // count] for at in range(count)]


def _size_bytes(path: Path) -> int:
    """The size of a file that holds something."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{shown(path)}: {error.strerror}. Replace or delete the file") from error
    if not size:
        raise DataError(f"{shown(path)}: an empty file, not an image. Replace or delete it")
    return size


# decoding


@contextlib.contextmanager
def _typed_faults(path: Path) -> Iterator[None]:
    """What reading or decoding a file raises, as a DataError of one line that names the file."""
    from PIL import Image

    try:
        yield
    except DataError as error:
        raise DataError(f"{shown(path)}: {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        # what PIL raises on images that are damaged, truncated, of another format, or unreasonably large
        if isinstance(error, OSError) and error.strerror:
            raise DataError(f"{shown(path)}: {error.strerror}. Make it readable, or delete it") from error
        reason = (str(error).splitlines() or [type(error).__name__])[0].replace(repr(str(path)), "").strip(" :")
        raise DataError(
            f"{shown(path)}: PIL cannot decode it as an image: {reason}. Replace or delete the file"
        ) from error


def decode_image(path: str | Path, mode: str) -> Image.Image:
    """The image of a file in PIL's `mode` (`L` or `RGB`); of several frames the first, not turned as EXIF says.

    torchvision's `ImageFolder` takes the same frame and turns nothing either.

    Raises:
        DataError: PIL cannot decode it, or nothing says which of its values is white.
    """
    from PIL import Image

    with _typed_faults(Path(path)), Image.open(path) as image:
        return convert_image(image, mode)


def convert_image(image: Image.Image, mode: str) -> Image.Image:
    """An image in PIL's `mode` (`L`, `RGB` or `RGBA`), its values scaled to 8 bits by the range of their own type.

    PIL's own conversion cuts off what is above 255 instead, which makes most pixels of a 16-bit image white.

    Raises:
        DataError: Nothing says which of its values is white, or there is no conversion; the file is not named.
    """
    import numpy as np
    from PIL import Image

    largest = _largest_value(image)
    if largest is None:
        return image.convert(mode)
    values = np.asarray(image).astype(np.uint32).clip(0, largest)
    if _tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO:  # PIL turns 8 bits, and leaves 16 as they are
        values = largest - values
    return Image.fromarray(((values * 255 + largest // 2) // largest).astype(np.uint8)).convert(mode)


_PHOTOMETRIC, _BITS_PER_SAMPLE, _SAMPLE_FORMAT = 262, 258, 339
"""Tags of the TIFF format (TIFF 6.0, Adobe 1992)."""
_WHITE_IS_ZERO, _UNSIGNED = 0, 1

_REFUSED = {
    "F": "floating-point values, whose white level is unknown. Save it with 8 or 16 unsigned bits, as PNG",
    "I": "32-bit or signed values, whose white level is unknown. Save it with 8 or 16 unsigned bits, as PNG",
    "LAB": "colours in CIELAB, which PIL does not convert. Save it as RGB",
}
_SIGNED = "signed values, whose white level is unknown. Save it with 8 or 16 unsigned bits, as PNG"
_SIXTEEN_BITS = ("PNG", "PPM")
"""Formats whose images in PIL's mode `I` hold 0 to 65,535: as older versions of PIL read them."""


def _largest_value(image: Image.Image) -> int | None:
    """The value of white in an image of more than 8 bits; `None` where PIL converts the image itself."""
    if _tag(image, _SAMPLE_FORMAT, _UNSIGNED) == _UNSIGNED:
        if image.mode.startswith("I;16"):
            return (1 << _tag(image, _BITS_PER_SAMPLE, 16)) - 1
        if image.mode == "I" and image.format in _SIXTEEN_BITS:
            return (1 << 16) - 1
        if image.mode not in _REFUSED:
            return None
    raise DataError(f"it holds {_REFUSED.get(image.mode, _SIGNED)}")


def _tag(image: Image.Image, number: int, otherwise: int = -1) -> int:
    """The first value of a tag of a TIFF; `otherwise` where the image is none, or lacks it."""
    value = getattr(image, "tag_v2", {}).get(number, otherwise)
    return int(value[0] if isinstance(value, tuple) else value)
