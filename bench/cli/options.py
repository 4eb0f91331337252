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
    from bench.records import Choice

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")


def _check_device(context: click.Context, parameter: click.Parameter, value: str) -> str:
    from bench.probes.selection import check_request

    return check_request(value)


device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda|cuda:N",
    callback=_check_device,
    help="Where to run; auto is a GPU if there is one.",
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
        if loaded[str(path)].kind != "cuda":
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


class ChoiceType(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic since click 8.5 only
    """An entry of a catalog, written `name` or `name:setting=value`."""

    def __init__(self, kind: Kind) -> None:
        """Take the kind: model, dataset or optimizer."""
        self.kind = kind
        self.name = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Choice:
        """Parse and check; raises UnknownNameError or BenchError with the remedy."""
        from bench.catalog import parse_choice
        from bench.records import Choice

        return value if isinstance(value, Choice) else parse_choice(self.kind, value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Names that begin with what was typed."""
        from bench.catalog import names

        return [CompletionItem(name) for name in names(self.kind) if name.startswith(incomplete)]
