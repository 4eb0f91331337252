"""Options and arguments that several commands share, each declared once, with their completion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from bench.catalog import Kind
    from bench.config import SweepConfig
    from bench.devices import Device
    from bench.devices.calibration import Calibrations
    from bench.records import Choice


class Share(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic since click 8.5 only
    """A fraction, written `0.02` or `2%`."""

    name = "fraction"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse; a percentage is divided by 100."""
        text = str(value).strip()
        try:
            return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            self.fail(f'"{value}" is not a valid fraction; write it like 0.02 or 2%', param, ctx)


class ResultsType(click.Path):
    """Results: the path of a folder or a bundle, or an address of either, which stays a text."""

    def __init__(self) -> None:
        """Take any path: whether it holds results is known once it is opened."""
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A text where it is an address, else a path."""
        from bench.bundles import is_address

        return value if is_address(value) else super().convert(value, param, ctx)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")


def _check_device(context: click.Context, parameter: click.Parameter, value: str) -> str:
    from bench.probes.selection import check_request

    return check_request(value)


def _check_launcher(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    from typing import get_args

    from bench.config import LauncherSettings
    from bench.errors import BenchError, nearest, nearest_sentence

    kinds = get_args(LauncherSettings.model_fields["kind"].annotation)
    if value is not None and value not in kinds:
        near = nearest_sentence(nearest(value, kinds))
        raise BenchError(f'--launcher: unknown "{value}". {near}Allowed: {", ".join(kinds)}')
    return value


def launcher_option(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--launcher`, with its help."""
    return click.option("--launcher", metavar="local|slurm|ray", callback=_check_launcher, help=text)


device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda|cuda:N|xpu|xpu:N|mps",
    callback=_check_device,
    help="Where to run; auto is a GPU if there is one.",
)


def complete_devices(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of GPUs that begin with what was typed."""
    from bench.estimators.choosing import list_gpus

    return [CompletionItem(gpu.name, help=gpu.gpu_name) for gpu in list_gpus() if gpu.name.startswith(incomplete)]


def check_devices(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """A request for devices in its one spelling. Raises DeviceError."""
    from bench.config.values import read_devices
    from bench.errors import DeviceError

    try:
        return None if value is None else read_devices(value)
    except ValueError as error:
        raise DeviceError(f"device: {error}") from error


devices_option = click.option(
    "--device",
    "devices",
    metavar="auto|cpu|cuda|cuda:N|xpu|mps|all|cuda:0,cuda:2",
    callback=check_devices,
    help="Where to run; auto is a GPU if there is one, all is every GPU of the host. [auto]",
)


def _load_device_files(
    context: click.Context, parameter: click.Parameter, value: tuple[Path, ...]
) -> dict[str, Device]:
    from bench.devices import load_device_file
    from bench.errors import BenchError

    loaded = {}
    for path in value:
        try:
            loaded[str(path)] = load_device_file(path)
        except BenchError as error:
            raise BenchError(f"--device-file: {error}") from error
        if not loaded[str(path)].is_gpu and not loaded[str(path)].calibration:
            raise BenchError(f'--device-file: {path}: describes a CPU; the file of a GPU has kind = "cuda"')
    return loaded


device_file_option = click.option(
    "--device-file",
    "device_files",
    multiple=True,
    type=click.Path(path_type=Path),
    callback=_load_device_files,
    metavar="FILE.toml",
    help="Your own device file (bench env --device-file writes one). Repeatable.",
)


def _read_calibrations(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> Calibrations:
    from bench.devices import load_device_file
    from bench.devices.calibration import NONE, Calibrations
    from bench.errors import BenchError

    if value == ("off",):
        return NONE
    if "off" in value:
        raise click.UsageError("--calibration: off stands alone; remove it or the files")
    given = []
    for path in value:
        try:
            given.append(load_device_file(Path(path)))
        except BenchError as error:
            raise BenchError(f"--calibration: {error}") from error
        if not given[-1].calibration:
            raise BenchError(
                f"--calibration: {path}: has no calibrated values. bench calibrate writes such a file; a device file "
                "without any goes with --device-file"
            )
    return Calibrations(tuple(given))


calibration_option = click.option(
    "--calibration",
    "calibrations",
    multiple=True,
    callback=_read_calibrations,
    metavar="FILE.toml|off",
    help="Calibration of a device, from bench calibrate; unless given, your own of that device. Repeatable.",
)


def _read_memory(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    from bench.config.values import read_bytes

    try:
        return None if value is None else read_bytes(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


memory_option = click.option(
    "--memory",
    "memory_bytes",
    metavar="SIZE",
    callback=_read_memory,
    help="Play a smaller card: the GPU has only so much memory, such as 24GiB. [limits.device_memory of CONFIG]",
)
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override one value of the configuration, as in --set 'grid.batch_size=[64]'. Repeatable.",
)
data_root_option = click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the data sets [BENCH_DATA, ~/.cache/bench/data].",
)


def config_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """The configuration file; by default that of the default sweep."""
    return click.argument("config", required=False, type=click.Path(path_type=Path), metavar="[CONFIG]")(command)


def read_config(path: Path | None, overrides: tuple[str, ...], memory_bytes: int | None = None) -> SweepConfig:
    """The checked configuration; the default one if no path is given. `--memory` overrides its limit."""
    from bench.config import load_config

    if memory_bytes is not None:
        overrides = (*overrides, f"limits.device_memory={memory_bytes}")
    return load_config(path or default_config(), overrides)


def memory_limit(config: Path | None, overrides: tuple[str, ...], memory_bytes: int | None) -> int | None:
    """The memory of the smaller card that a device plays, by `--memory` or the configuration; None for its own."""
    return memory_bytes if config is None else read_config(config, overrides, memory_bytes).limits.device_memory


def default_config() -> Path:
    """`configs/default.toml` here, else the one of the checkout or the installed package."""
    package = Path(__file__).parent.parent
    places = [Path(), package.parent, package]
    found = (place / "configs" / "default.toml" for place in places)
    return next((path for path in found if path.exists()), Path("configs/default.toml"))


class ValueType(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic since click 8.5 only
    """A value of an axis that is neither a word of a list nor an entry of a catalog: `compile` or `allocator`."""

    def __init__(self, axis: str) -> None:
        """Take the axis."""
        self.name = axis

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """As cases have it; fails with what is allowed."""
        from bench.config.values import read_allocator, read_compile

        try:
            return (read_compile if self.name == "compile" else read_allocator)(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _use_files(context: click.Context, parameter: click.Parameter, value: tuple[Path, ...]) -> tuple[Path, ...]:
    from bench.catalog import files

    files.forget()
    if not context.resilient_parsing:
        for path in value:
            _use_file(path, "--models")
    return value


def _use_file(path: Path, option: str) -> None:
    from bench.client import use_file
    from bench.errors import BenchError
    from bench.launchers import LocalLauncher

    try:
        use_file(LocalLauncher(), path)
    except BenchError as error:
        raise BenchError(f"{option}: {error}") from error


models_option = click.option(
    "--models",
    "model_files",
    multiple=True,
    type=click.Path(path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=_use_files,
    metavar="FILE.py",
    help="Your own models: the file that defines them, which go by FILE.py:NAME. Repeatable.",
)


class ChoiceType(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic since click 8.5 only
    """An entry of a catalog, written `name` or `name:setting=value`; a model's name may begin with a path."""

    def __init__(self, kind: Kind) -> None:
        """Take the kind: model, dataset or optimizer."""
        self.kind = kind
        self.name = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse and check; raises UnknownNameError or BenchError with the remedy."""
        return self.parse(self._named(value, ctx)) if isinstance(value, str) else value

    def parse(self, text: str) -> Any:
        """The `Choice` that the text names. Raises BenchError."""
        from bench.catalog import parse_choice

        return parse_choice(self.kind, text)

    def _named(self, text: str, ctx: click.Context | None) -> str:
        """The text without the path of a user's file, which is loaded."""
        import re

        from bench.catalog import files

        found = re.match(r"([^:]*\.py):", text) if self.kind == "model" else None
        if found is None or (ctx is not None and ctx.resilient_parsing):
            return text
        path = Path(found[1])
        if path.is_file() or len(path.parts) > 1 or not files.is_named(path.name):
            _use_file(path, "--model")
        return path.name + text[found.end(1) :]

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Names that begin with what was typed."""
        from bench.catalog import names

        return [CompletionItem(name) for name in names(self.kind) if name.startswith(incomplete)]


class ChoicesType(ChoiceType):
    """Entries of a catalog: as `ChoiceType`, or a pattern with `*` and `?`; for an option with `flat` as callback."""

    def parse(self, text: str) -> Any:
        """A tuple of the choices. Raises BenchError."""
        from bench.catalog import parse_choices

        return tuple(parse_choices(self.kind, text))


def flat(
    context: click.Context, parameter: click.Parameter, value: tuple[tuple[Choice, ...], ...]
) -> tuple[Choice, ...]:
    """The choices of all values of a repeatable option, each once."""
    return tuple(dict.fromkeys(choice for choices in value for choice in choices))
