"""How far equal devices differ, where several of one model took part."""

from __future__ import annotations

from collections.abc import Sequence

from bench.analysis import spread_hosts
from bench.analysis.equal_devices import EqualDevices, equal_devices
from bench.report.blocks import Block, Paragraph, Table
from bench.report.contents import Contents, Section
from bench.report.words import integer
from bench.units import MISSING, counted


def build(contents: Contents) -> Sequence[Block]:
    """A sentence and a table for each model with several devices, and what intervals count on a cluster."""
    blocks: list[Block] = []
    for found in equal_devices(contents.frame):
        blocks += [Paragraph(_sentence(found)), _table(found)]
    hosts = set(spread_hosts(contents.frame)) - {""}
    if hosts:
        blocks.append(Paragraph(_unit(len(hosts))))
    return blocks


def _unit(hosts: int) -> str:
    """What intervals count where repeats were spread over hosts."""
    if hosts == 1:
        return "All runs were on one host: intervals hold for that host, and say nothing about others."
    return (
        f"Repeats were spread over {hosts} hosts: where a case has several, its interval counts hosts, not processes."
    )


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
