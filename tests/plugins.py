"""A package outside the project, installed for one test: models that misbehave, through the entry points of the seam."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests import warm

SOURCE = """
import os, signal, time
from bench.catalog.entries import ModelEntry

def entry(name, act, always=False):
    def build(images):
        import torch
        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = torch.nn.Linear(images.channels * images.height * images.width, images.classes)
            def forward(self, x):
                output = self.layer(x.flatten(1))
                return output if x.is_meta and not always else act(torch, output)
        return Model()
    return ModelEntry(name, build)

def raises(torch, output):
    raise ValueError("a fault | of <the> model\\nwith a second line")

def hangs(torch, output):
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(1)

def kills(torch, output):
    os.kill(os.getpid(), signal.SIGKILL)

def leaves(torch, output):
    print("last words of the model", flush=True)
    os._exit(7)

def eats(torch, output):
    held = torch.ones(1 << 34, dtype=torch.uint8)
    return output + held[0]

def nan(torch, output):
    return output * float("nan")

def once(torch, output):
    marker = os.path.join(os.path.dirname(__file__), "was-here")
    if not os.path.exists(marker):
        open(marker, "w").close()
        raise ValueError("the first time")
    return output

def reads(torch, output):
    return output * 2 if output.sum() > 0 else output

def reads_always(torch, output):
    return output * sum(output.flatten().tolist())

good = entry("good", lambda torch, output: output)
bad_raises, bad_hangs, bad_kills, bad_leaves, bad_eats, bad_nan, bad_once, bad_reads = (
    entry("bad_" + act.__name__, act) for act in (raises, hangs, kills, leaves, eats, nan, once, reads)
)
bad_reads_always = entry("bad_reads_always", reads_always, always=True)
bad_always = entry("bad_always", raises, always=True)
not_an_entry = 7
"""
NAMES = ("good", "bad_raises", "bad_hangs", "bad_kills", "bad_leaves", "bad_eats", "bad_nan")
ALL_NAMES = (*NAMES, "bad_once", "bad_reads", "bad_reads_always", "bad_always", "not_an_entry", "absent")


def install(folder: Path) -> dict[str, str]:
    """Write the package below `folder`; returns the environment in which it is installed."""
    info = folder / "misbehaving-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "misbehaving.py").write_text(SOURCE, encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: misbehaving\nVersion: 1.0\n", encoding="utf-8")
    lines = [f"{name} = misbehaving:{name}" for name in ALL_NAMES]
    (info / "entry_points.txt").write_text("\n".join(["[bench.models]", *lines, ""]), encoding="utf-8")
    root = str(Path(__file__).parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), root])}


def bench(
    *arguments: str | Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 240,
    fresh: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own: a fork of one that has everything loaded, or a `fresh` Python."""
    environment = dict(env if env is not None else os.environ)
    environment.setdefault("PYTHONPATH", str(Path(__file__).parents[1]))
    words = list(map(str, arguments))
    if not fresh and sys.platform == "linux":
        return warm.run(words, environment, cwd, timeout)
    command = [sys.executable, "-m", "bench", *words]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=cwd, timeout=timeout, check=False
    )
