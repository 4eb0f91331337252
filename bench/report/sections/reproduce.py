"""How to get the same results again, and how to get this report from them."""

from __future__ import annotations

from collections.abc import Sequence

from bench.report.blocks import Block, Bullets, Code, Fold, Listing, Paragraph
from bench.report.contents import Contents
from bench.report.kinds import Section
from bench.report.words import listed


def build(contents: Contents) -> Sequence[Block]:
    """The commands, the versions, and the configuration as it was."""
    commands = contents.noted("command") or ["bench sweep CONFIG"]
    commits = [str(commit) for commit in dict.fromkeys(contents.frame["git_commit"].dropna())]
    versions = [
        f"{name} {listed(dict.fromkeys(contents.frame[column].dropna()), 3)}"
        for name, column in (("bench", "bench_version"), ("torch", "torch_version"), ("Python", "python_version"))
        if contents.frame[column].notna().any()
    ]
    at = f" at commit {listed((commit[:12] for commit in commits), 3)}" if commits else ""
    blocks: list[Block] = [
        Paragraph(f"With {', '.join(versions) or 'versions unknown'}{at}:"),
        Listing("\n".join([*commands, f"bench report reports/{contents.name}"]), "sh"),
        Paragraph((
            "The first command measures (and goes on where it was interrupted), the second makes this report again, to "
            "the byte, from the Parquet files in ", Code("data"), ". In Python, ",
            Code(f'bench.load("reports/{contents.name}")'), " gives one row a run, with every step's time.",
        )),
    ]  # fmt: skip
    configs = contents.noted("config", "configuration", "config_text")
    blocks += [
        Fold("The configuration" if len(configs) == 1 else f"Configuration {number}", [Listing(text, "toml")])
        for number, text in enumerate(configs, 1)
    ]
    keys = {
        name: sorted(set(contents.frame[name].dropna())) for name in ("environment_key", "protocol_key", "code_key")
    }
    items = [(f"{name.replace('_', ' ')}: ", Code(listed(values, 4))) for name, values in keys.items() if any(values)]
    return [*blocks, Fold("Keys of these results", [Bullets(items)])]


SECTION = Section(order=70, title="How to reproduce", build=build)
