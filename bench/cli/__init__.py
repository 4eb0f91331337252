"""The command line: parse, print, exit codes; nothing else.

One file a command, each with a light head: `bench --help` starts without torch, pandas or matplotlib. Commands import
what they need when they run.
"""

from bench.cli.root import cli

__all__ = ["cli", "main"]


def main() -> None:
    """Run the command line; leaves with the exit code of what happened."""
    cli(prog_name="bench")
