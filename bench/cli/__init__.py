"""The command line: parse, print, exit codes; nothing else.

One file per command, each with light imports at the top: `bench --help` starts without torch, pandas or matplotlib.
Commands import what they need when they run.
"""

from __future__ import annotations

import warnings
from typing import TextIO

import click

from bench.cli.root import cli
from bench.interpreters import leave_current_folder
from bench.terminal import printable

__all__ = ["cli", "main", "show_warnings"]


def show_warnings() -> None:
    """Print each warning from now on as one line, once, without the file and the code line that raised it."""
    printed: set[str] = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if str(message) not in printed:
            click.echo(f"{click.style('warning: ', fg='yellow')}{printable(str(message))}", err=True)
        printed.add(str(message))

    warnings.showwarning = show


def main() -> None:
    """Run the command line and exit with the code of the result."""
    leave_current_folder()
    show_warnings()
    cli(prog_name="bench")
