"""How to get the same results again, and how to get this report from them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from bench.report.blocks import Block, Bullets, Code, Fold, Listing, Paragraph
from bench.report.contents import Contents, Section
from bench.report.words import listed


def build(contents: Contents) -> Sequence[Block]:
    """The commands, the versions, and the configuration as it was."""
    commits = [str(commit) for commit in dict.fromkeys(contents.frame["git_commit"].dropna())]
    versions = [
        f"{name} {listed(dict.fromkeys(contents.frame[column].dropna()), 3)}"
        for name, column in (("bench", "bench_version"), ("torch", "torch_version"), ("Python", "python_version"))
        if contents.frame[column].notna().any()
    ]
    at = f" at commit {listed((commit[:12] for commit in commits), 3)}" if commits else ""
    blocks: list[Block] = [
        Paragraph(f"With {', '.join(versions) or 'versions unknown'}{at}:"),
        Listing("\n".join([*_sweeps(contents), _report(contents)]), "sh"),
        Paragraph(
            (
                Code("bench sweep"),
                " measures what is missing, on another machine everything; ",
                Code("bench report"),
                " makes this report again, to the byte, from the Parquet files in ",
                Code("data"),
                ". In Python, ",
                Code(f"bench.load({_place(contents)!r})"),
                " gives one row a run, with every step's time.",
            )
        ),
    ]
    blocks += [Fold(f"The configuration, {name}", [Listing(text, "toml")]) for name, text in contents.configs.items()]
    blocks += [
        Fold(f"The GPU as the estimates took it, {name} (bench estimate --device-file)", [Listing(text, "toml")])
        for name, text in contents.devices.items()
    ]
    keys = {
        name: sorted(set(contents.frame[name].dropna())) for name in ("environment_key", "protocol_key", "code_key")
    }
    items = [(f"{name.replace('_', ' ')}: ", Code(listed(values, 4))) for name, values in keys.items() if any(values)]
    return [*blocks, Fold("Keys of these results", [Bullets(items)])]


def _place(contents: Contents) -> str:
    return f"reports/{contents.name}"


def _folder(contents: Contents) -> str:
    return shlex.quote(_place(contents))


def _report(contents: Contents) -> str:
    """The command that renders this report; one of several folders names them, and its baseline."""
    if len(contents.sources) < 2:
        return f"bench report {_folder(contents)}"
    folders = " ".join(shlex.quote(f"reports/{name}") for name in contents.sources)
    baseline = f" --baseline {shlex.quote(contents.hardware.baseline)}" if contents.hardware else ""
    return f"bench report {folders} --out {_folder(contents)}{baseline}"


def _sweeps(contents: Contents) -> list[str]:
    """A command for each configuration that was noted."""
    devices = [name for name in contents.noted("device") if name != "auto"]
    device = f" --device {shlex.quote(devices[0])}" if len(devices) == 1 else ""
    out = f" --out {_folder(contents)}" if contents.noted("name") != [contents.name] else ""
    return [f"bench sweep {_folder(contents)}/{name}{device}{out}" for name in contents.configs]


SECTION = Section(order=70, title="How to reproduce", build=build)
