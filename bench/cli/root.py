"""The command group: how commands are found and listed, and how an error becomes a message and an exit code."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path
from typing import Any

import click

from bench import __version__
from bench.errors import EXIT_INTERRUPTED, BenchError, nearest, nearest_sentence
from bench.terminal import printable

GROUPS: dict[str, list[str]] = {"Measure": [], "Estimate": [], "Publish": []}
"""The names of the commands under each heading of `bench --help`; every command's module says its `GROUP`."""


class Fault(click.ClickException):
    """An error of the user or the machine, printed without a traceback."""

    def __init__(self, error: BenchError) -> None:
        """Keep the message and the exit code of `error`."""
        super().__init__(str(error))
        self.exit_code = error.exit_code  # type: ignore[misc]  # click reads it from the instance

    def show(self, file: Any = None) -> None:
        """Print every line of the message on standard error, the first one with `error:`."""
        prefix = click.style("error: ", fg="red", bold=True)
        for line in self.message.splitlines():
            click.echo(f"{prefix}{printable(line)}", err=True)
            prefix = "       "


class BenchGroup(click.Group):
    """A group that finds its commands in the modules of this folder and prints errors without a traceback.

    A command in a module of its own name is found without importing any other. An unknown one is answered with the
    nearest.
    """

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name, or None."""
        if cmd_name not in self.commands:
            modules = _modules()
            for module in [cmd_name] if cmd_name in modules else []:
                self._import(module)
            for module in modules if cmd_name not in self.commands else []:
                self._import(module)
        return super().get_command(ctx, cmd_name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command for people, sorted."""
        for module in _modules():
            self._import(module)
        return [name for name in super().list_commands(ctx) if not self.commands[name].hidden]

    def _import(self, name: str) -> None:
        """Add the commands of a module: those in its COMMANDS, each under its GROUP."""
        module = importlib.import_module(f"bench.cli.{name}")
        for command in getattr(module, "COMMANDS", ()):
            if command.name not in self.commands:
                self.add_command(command)
                GROUPS[module.GROUP].append(command.name)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a BenchError is printed as its message, Ctrl-C exits with code 130."""
        try:
            return super().invoke(ctx)
        except BenchError as error:
            raise Fault(error) from error
        except Exception as error:
            if not _while_importing_torch(error):
                raise
            raise Fault(BenchError(_why_torch_fails(error))) from error
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(EXIT_INTERRUPTED)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands by what they are for, in the order of `GROUPS`."""
        names = self.list_commands(ctx)
        width = max(map(len, names))
        for group, members in GROUPS.items():
            named = [
                (name, self.commands[name]) for name in names if name in members and not self.commands[name].hidden
            ]
            rows = [
                (name.ljust(width), command.get_short_help_str(formatter.width - 6 - width)) for name, command in named
            ]
            with formatter.section(group):
                formatter.write_dl(rows)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command; for an unknown one, suggest the nearest."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            names = self.list_commands(ctx)
            near = nearest_sentence(nearest(args[0], names))
            ctx.fail(f'unknown command "{args[0]}". {near}Available: {", ".join(names)}')
        return super().resolve_command(ctx, args)


def _while_importing_torch(error: BaseException) -> bool:
    """Whether an exception was raised while torch was imported: a variable with a bad value, a broken library."""
    import traceback

    frames = (frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(code.co_name == "<module>" and code.co_filename.endswith(_TORCH) for code in frames)


_TORCH = str(Path("torch", "__init__.py"))


def _why_torch_fails(error: Exception) -> str:
    from bench.launchers.faults import start_fault

    return start_fault("torch") or f"torch cannot be imported: {error}"


@click.group(cls=BenchGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="bench")
def cli() -> None:
    """Measure and estimate the memory and speed of training steps, side by side.

    \b
    Examples:
      bench sweep                              run the default sweep, then its report
      bench sweep configs/gpu.toml             run the reference grid for GPUs
      bench plan configs/gpu.toml              list what that would run
      bench show model resnet18 --dataset cifar10
      bench env                                check this machine before measuring
      bench estimate --model resnet50 --optimizer adam --device h200

    Shell completion: eval "$(_BENCH_COMPLETE=bash_source bench)" (or zsh_source, fish_source).
    """


def _modules() -> list[str]:
    """The names of this folder's modules, sorted; this one, which has no command, is left out."""
    return sorted(info.name for info in pkgutil.iter_modules([str(Path(__file__).parent)]) if info.name != "root")


def echo_json(value: Any) -> None:
    """Print `value` as JSON on standard output; unknown values are null, never NaN."""
    import json

    json.dump(value, sys.stdout, indent=2, allow_nan=False, default=str)
    sys.stdout.write("\n")
