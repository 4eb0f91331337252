"""`bench data`: download data sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.cli.options import ChoiceType, data_root_option

if TYPE_CHECKING:
    from bench.records import Choice


@click.group()
def data() -> None:
    """Download data sets."""


@data.command("fetch")
@click.argument("names", nargs=-1, required=True, type=ChoiceType("dataset"))
@data_root_option
def fetch(names: tuple[Choice, ...], root: Path | None) -> None:
    """Download data sets.

    Data sets that are already on this machine are left unchanged.

    \b
    Examples:
      bench data fetch mnist fashion_mnist cifar10
      bench data fetch cifar100 --root /data
    """
    from bench.catalog.data_fetch import fetch_dataset
    from bench.errors import DataError
    from bench.folders import data_folder

    faults = []
    for name in names:
        try:
            click.echo(f"{name}: {fetch_dataset(name, root or data_folder())}")
        except DataError as error:
            faults.append(str(error))
    if faults:
        raise DataError("\n".join(faults))


GROUP = "Measure"
COMMANDS = (data,)
