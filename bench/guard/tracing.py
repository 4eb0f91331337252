"""Traces cases for the guard, notes the files that take part, and keeps what was traced as long as those stay.

What is kept of a case names every file that its model's code was read from, with a hash of the content: modules that
were imported, and whatever else was opened meanwhile. It serves as long as all of them are as they were, no module was
added beside them, installed packages are the same, and variables of the environment that the user's files asked for
hold the same. Not seen: files above 16 MiB, what an installed package reads for itself, and the network.

Reading what is kept needs no torch; tracing does, in a separate process.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import re
import sys
import sysconfig
import time
import types
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench import __version__, catalog, fingerprint
from bench.catalog import files
from bench.devices import Device
from bench.errors import BenchError, Unsupported
from bench.estimators.cases import SHARED_FROM
from bench.estimators.cudnn_plans import library_facts
from bench.estimators.kept import recording_of
from bench.estimators.memory import Target
from bench.estimators.memory_settings import MEMORY_VARIABLES
from bench.estimators.roofline import estimate_speed
from bench.folders import OFF, trace_cache_folder
from bench.forks import Lost, Work, work_apart
from bench.guard.baselines import Guarded
from bench.guard.outline import outline_case
from bench.plan import image_spec
from bench.records import USUAL, Case, stable_hash

_CODE = (*fingerprint.ESTIMATE_CODE, "guard")
SUFFIX = ".outline"
MOST_KEPT = 1000
MOST_HELD_BYTES = 1 << 25
_MOST_FILE_BYTES = 1 << 24
"""Of a file that a model opened, to be hashed: weights and images are not code."""

_PACKAGE = Path(__file__).parents[1]
_INSTALLED = re.compile(r"/(?:site|dist)-packages/(?P<top>[^/]+)")
_SYSTEM = re.compile(r"/(?:proc|sys|dev|etc|usr/(?:local/)?(?:bin|cuda[^/]*|include|lib\w*|share))/")
"""Of `/usr` these alone: containers have projects in `/usr/src` and elsewhere in it."""
_STANDARD = tuple({f"{sysconfig.get_path(name)}/" for name in ("stdlib", "platstdlib")})
_VERSIONED = ("torch", "torchvision")


class Sources:
    """The files that take part in what happens from now on in this process.

    An audit hook hears of files, and stays for the life of the process: use it in a child.

    Attributes:
        variables: Those of the environment that the user's files asked for, with a hash of what they held.
    """

    def __init__(self) -> None:
        """Begin."""
        self._before = {*sys.modules}
        self._begun_ns = time.time_ns()
        self._opened: set[str] = set()
        self._kinds: set[type] = set()
        self.variables: dict[str, str] = {}
        sys.addaudithook(self._hear)
        self._hear_variables()

    def _hear_variables(self) -> None:
        """Note the variables that the user's files ask for: `os.environ` has no hook, and all reading ends here."""
        kind: Any = type(os.environ)
        read = kind.__getitem__

        def heard(environment: Any, name: str) -> str:
            value = None
            try:
                value = read(environment, name)
                return value  # type: ignore[no-any-return]
            finally:
                if _is_own(_caller(sys._getframe(1))):
                    self.variables.setdefault(name, stable_hash(value))  # no value lies on the disk: it may be a secret

        kind.__getitem__ = heard

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str):
            path, mode, flags = arguments
            if (mode or "r")[:1] == "r" and not (flags or 0) & (os.O_WRONLY | os.O_RDWR):
                self._opened.add(str(Path(path).absolute()))

    @contextlib.contextmanager
    def followed(self) -> Iterator[None]:
        """While entered, the classes of modules that run are noted."""
        from torch.nn.modules.module import register_module_forward_pre_hook

        handle = register_module_forward_pre_hook(lambda module, args: self._kinds.add(type(module)))
        try:
            yield
        finally:
            handle.remove()

    def read(self) -> tuple[list[Path], set[str]]:
        """What was read since: files of the user's, and the names of installed packages."""
        imported = [sys.modules[name] for name in {*sys.modules} - self._before]
        paths = {*map(Path, self._opened), *filter(None, map(_source, imported))}
        own = sorted(path for path in paths if _is_own(path) and _is_hashed(path))
        return own, _distributions_of(found["top"] for path in paths if (found := _INSTALLED.search(str(path))))

    def is_overtaken(self, path: Path) -> bool:
        """Whether a file was written since: what it holds may not be what was read."""
        return path.stat().st_mtime_ns >= self._begun_ns

    def own(self, *roots: object) -> list[Path]:
        """The user's own files behind the modules that ran and behind `roots` (functions and classes), all opened ones.

        From each file on, those of the modules and of the objects in its namespace; what else is loaded does not count.
        """
        waiting = [_module_of(item) for item in (*roots, *self._kinds)]
        seen: set[str] = set()
        found = {path for path in map(Path, self._opened) if _is_own(path) and _is_hashed(path)}
        while waiting:
            module = waiting.pop()
            if module is None or module.__name__ in seen:
                continue
            seen.add(module.__name__)
            path = _source(module)
            if path is None or not _is_own(path):
                continue
            found.add(path)
            for value in list(vars(module).values()):
                waiting.append(value if isinstance(value, types.ModuleType) else _module_of(value))
        return sorted(found)

    def packages(self) -> dict[str, str]:
        """The versions of the installed packages that the modules which ran are from, but for torch's."""
        tops = {kind.__module__.partition(".")[0] for kind in self._kinds} - {*_VERSIONED}
        sources = {top: _source(sys.modules.get(top)) for top in tops}
        names = _distributions_of(top for top, path in sources.items() if path is not None and not _is_own(path))
        return {name: importlib.metadata.version(name) for name in sorted(names)}


def _distributions_of(tops: Iterable[str]) -> set[str]:
    """The names of the installed packages that modules are from, by the first part of the modules' names."""
    found: set[str] = set()
    for top in {top.removesuffix(".py") for top in tops}:
        try:
            importlib.metadata.version(top)
            found.add(top)
        except (importlib.metadata.PackageNotFoundError, ValueError):
            found.update(_distributions().get(top, ()))
    return found


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    """Packages by their modules, where the names differ: `yaml` is of PyYAML. It takes 0.2 s."""
    return importlib.metadata.packages_distributions()


def _installed(name: str) -> str | None:
    """The version of an installed package and a hash of the list of its files, which the next build of it changes."""
    try:
        found = importlib.metadata.distribution(name)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
    return f"{found.version} {stable_hash(found.read_text('RECORD') or '')}"


def _module_of(item: object) -> types.ModuleType | None:
    """The module that defines a function, a class or an instance's class."""
    with contextlib.suppress(Exception):  # an object of a user's may answer in any way
        return sys.modules.get(item.__module__)
    return None


def _caller(frame: types.FrameType) -> Path:
    """The file of whoever asked `os.environ`, behind the standard library's own functions."""
    while frame.f_back is not None and frame.f_code.co_filename.startswith(("<frozen ", *_STANDARD)):
        frame = frame.f_back
    return Path(frame.f_code.co_filename)


def _source(module: types.ModuleType | None) -> Path | None:
    """The Python file of a module."""
    name = getattr(module, "__file__", None)
    return Path(name).absolute() if isinstance(name, str) and name.endswith(".py") else None


def _is_own(path: Path) -> bool:
    """Whether a file is the user's: not of an installed package, of Python, of the system or of this package."""
    text = str(path)
    elsewhere = _INSTALLED.search(text) or _SYSTEM.match(text) or text.startswith(_STANDARD)
    return path.is_absolute() and not elsewhere and _PACKAGE not in path.parents


def _is_hashed(path: Path) -> bool:
    """Whether a file of the user's counts: neither made from another, nor one of weights or images."""
    if path.suffix in (".pyc", ".so", ".trace", SUFFIX, ".log"):
        return False
    try:
        return path.is_file() and path.stat().st_size <= _MOST_FILE_BYTES
    except OSError:
        return False


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def trace_guarded(
    case: Case, device: Device, *, workspaces: bool, sources: Sources, shared: bool = False
) -> dict[str, Any]:
    """Trace a case; in a separate process.

    Args:
        case: Any.
        device: A GPU.
        workspaces: Whether to count cuDNN's workspaces.
        sources: Of this process.
        shared: Whether other batch sizes of the case are asked for too.

    Returns:
        The fields of a `Guarded`.

    Raises:
        BenchError: The case cannot be traced.
        Exception: Whatever the model raises.
    """
    if files.is_name(case.model.name):  # what is kept of it is kept under its file and those beside it alone
        os.environ["BENCH_TRACE_CACHE"] = OFF
    target = Target.of(device, workspaces=workspaces, allocator=case.allocator)
    with sources.followed():
        outline = outline_case(case, target, shared=shared)
    model, optimizer = catalog.model(case.model.name), catalog.optimizer(case.optimizer.name)
    own = sorted(
        (path.name, _hash(path)) for path in sources.own(*_behind(model.build, model.step, model.loss, optimizer.build))
    )
    try:
        speed = estimate_speed(recording_of(case, target.machine, shared=shared), case, device).samples_per_s
    except Unsupported:  # of the device or the operators: the memory is known all the same
        speed = None
    environment = _environment(case, workspaces=workspaces) | sources.packages()
    axes = {axis: str(value) for axis, value in case.axes.items() if value != USUAL.get(axis)}
    guarded = Guarded(axes | {"device": device.name}, environment, stable_hash(own) if own else "", outline, speed)
    return guarded.fields() | {"samples_per_s": speed}


def _read_from(sources: Sources) -> dict[str, Any]:
    """What has been read: `files`, `folders`, `packages` and `variables` with hashes.

    Nothing where a file was written meanwhile, so that the trace is not kept: it may be of what the file held before.
    """
    read, packages = sources.read()
    if any(map(sources.is_overtaken, read)):
        return {}
    return {
        "files": {str(path): _hash(path) for path in read},
        "folders": {str(path.parent): _listing(path.parent) for path in read if path.suffix == ".py"},
        "packages": {name: _installed(name) for name in packages},
        "variables": sources.variables,
    }


def trace_apart(
    cases: Sequence[Case], device: Device, *, workers: int, workspaces: bool, timeout_s: float
) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Trace cases in forks of this process, in any order.

    Args:
        cases: Each once; batch sizes of one step come together, and two recordings serve three or more of them.
        device: A GPU.
        workers: How many forks at a time.
        workspaces: As for `trace_guarded`.
        timeout_s: For one case.

    Returns:
        The place of each case; with what `trace_guarded` returns as `guarded`, and what it was read from, see
        `_read_from`; or with the reason why it cannot be traced.
    """
    _distributions()  # once, for all forks
    sources = Sources()
    columns: dict[Case, list[int]] = {}
    for index, case in enumerate(cases):
        columns.setdefault(replace(case, batch_size=1, input="synthetic"), []).append(index)
    shared = {index for column in columns.values() if len(column) >= SHARED_FROM for index in column}

    def do(index: int, alone: bool) -> dict[str, Any] | str:
        try:
            is_shared = index in shared and not alone
            traced = trace_guarded(cases[index], device, workspaces=workspaces, sources=sources, shared=is_shared)
            return {"guarded": traced, **_read_from(sources)}
        except BenchError as error:
            return str(error)

    work: Work[int] = Work(
        do=do,
        shares=lambda index: index in shared,
        kin=lambda index: (cases[index].model, cases[index].optimizer),
        describe=lambda index: str(cases[index]),
        timeout_s=timeout_s,
    )
    for index, answer in work_apart(work, list(columns.values()), workers):
        yield index, answer.reason if isinstance(answer, Lost) else answer


def _behind(*items: object) -> list[object]:
    """Functions with all that takes part in calling them: what partials hold, and what closures refer to."""
    waiting = [*items]
    found: list[object] = []
    while waiting:
        item = waiting.pop()
        if any(item is each for each in found):
            continue
        found.append(item)
        if isinstance(item, functools.partial):
            waiting += [item.func, *item.args, *item.keywords.values()]
        for cell in (item.__closure__ or ()) if isinstance(item, types.FunctionType) else ():
            with contextlib.suppress(ValueError):  # it is empty yet
                waiting.append(cell.cell_contents)
    return found


def _listing(folder: Path) -> str:
    """A hash of the names of a folder's modules: Python files, and folders that are packages and come before those."""
    return stable_hash(
        sorted(item.name for item in folder.iterdir() if item.suffix == ".py" or (item / "__init__.py").is_file())
    )


def _environment(case: Case, *, workspaces: bool) -> dict[str, str]:
    """What decides a trace beside the model's own code."""
    found = {
        "bench": __version__,
        "bench code": fingerprint.code_key(_CODE),
        "python": "{}.{}".format(*sys.version_info[:2]),
        **{name: importlib.metadata.version(name).partition("+")[0] for name in _VERSIONED},
    }
    if (package := catalog.package_of(case.model.name)) is not None:
        found[package] = importlib.metadata.version(package)
    if workspaces:
        import torch

        found["cudnn"] = str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
    return found | {name: os.environ[name] for name in MEMORY_VARIABLES if name in os.environ}


def _key(case: Case, device: Device, *, workspaces: bool) -> str | None:
    """What names a case as traced in this environment; None where that cannot be told."""
    try:
        libraries = library_facts() if workspaces else None
    except Unsupported:
        return None
    versions = [importlib.metadata.version(name) for name in _VERSIONED]
    variables = {name: value for name, value in os.environ.items() if name in MEMORY_VARIABLES}
    package = catalog.package_of(case.model.name)
    code = [fingerprint.code_key(_CODE), package and importlib.metadata.version(package), versions, libraries]
    place = [sys.version_info[:3], sys.prefix, os.environ.get("PYTHONPATH"), str(Path.cwd()), *map(str, files.paths())]
    axes = {axis: str(value) for axis, value in case.axes.items()}
    if not catalog.is_external("dataset", case.dataset.name):  # a folder's classes may become more
        axes["images"] = str(image_spec(case.dataset, case.image_size))
    return stable_hash([code, place, variables, axes, str(asdict(device)), workspaces])


def load_kept(cases: Iterable[Case], device: Device, *, workspaces: bool) -> dict[Case, Guarded]:
    """What is kept of cases, as far as all files are as they were. Needs no torch."""
    folder = trace_cache_folder()
    now: dict[str, Callable[[str], str | None]] = {
        "files": functools.cache(lambda path: _hash(Path(path))),
        "folders": functools.cache(lambda path: _listing(Path(path))),
        "packages": functools.cache(_installed),
        "variables": lambda name: stable_hash(os.environ.get(name)),
    }

    found = {}
    for case in cases if folder is not None else ():
        key = _key(case, device, workspaces=workspaces)
        try:
            assert folder is not None
            expander = zlib.decompressobj()
            content = expander.decompress((folder / f"{key}{SUFFIX}").read_bytes(), MOST_HELD_BYTES)
            held = json.loads(content)
            if all(hashed(name) == digits for kind, hashed in now.items() for name, digits in held[kind].items()):
                found[case] = Guarded.read(held["guarded"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError, zlib.error):
            continue  # absent, of files that are gone, or damaged: it is traced anew
    return found


def keep_traced(case: Case, device: Device, traced: dict[str, Any], *, workspaces: bool) -> None:
    """Keep what `trace_apart` returned; a folder that cannot be written costs the next caller a trace, no more."""
    folder = trace_cache_folder()
    key = _key(case, device, workspaces=workspaces)
    if folder is None or key is None or "files" not in traced:
        return
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        kept = sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime)
        for old in kept[: max(0, len(kept) - MOST_KEPT + 1)]:
            old.unlink(missing_ok=True)
        new = folder / f".new-{os.getpid()}-{key}"
        new.write_bytes(zlib.compress(json.dumps(traced).encode(), 1))
        new.replace(folder / f"{key}{SUFFIX}")


def name_cases_on(cases: Iterable[Case], device: Device) -> dict[str, Case]:
    """Cases by the names under which baselines hold them: every axis that is not as usual, and the device."""
    return {f"{replace(case, input='synthetic')} on {device.name}": case for case in cases}
