"""How far equal devices differ, where several of one model took part."""

from __future__ import annotations

from collections.abc import Sequence

from bench.analysis.equal_devices import EqualDevices, equal_devices
from bench.report.blocks import Block, Paragraph, Table
from bench.report.contents import Contents, Section
from bench.report.words import integer
from bench.units import MISSING, counted


def build(contents: Contents) -> Sequence[Block]:
    """A sentence and a table for each model; nothing where no case ran on two equal devices."""
    blocks: list[Block] = []
    for found in equal_devices(contents.frame):
        blocks += [Paragraph(_sentence(found)), _table(found)]
    return blocks


def _sentence(found: EqualDevices) -> str:
    return (
        f"{counted(found.cases, 'case')} ran on several of {len(found.cards)} equal devices ({found.name}). The "
        f"fastest is {found.spread_frac * 100:.2f} % faster than the slowest."
    )


def _table(found: EqualDevices) -> Table:
    rows = [
        [
            card.name,
            integer(card.runs),
            f"{(card.ratio - 1) * 100:+.2f} %",
            MISSING
            if card.low is None or card.high is None
            else f"{(card.low - 1) * 100:+.2f} to {(card.high - 1) * 100:+.2f} %",
        ]
        for card in found.cards
    ]
    head = ["device", "runs", "speed, of the mean of the devices", "95 % interval"]
    caption = "Devices are named by a hash of their UUID. Their speeds are those that explain all cases together best."
    return Table(head, rows, frozenset({1, 2, 3}), caption)


SECTION = Section(order=46, title="Equal devices", build=build)
"""Behind the figures: how far another device of the same model may be from these numbers."""
