"""Models that are drawn and edited at random, and the script that trains them under the stub driver.

`python edits.py TASK.json FOLDER` trains each specification of the task in a fork, as a plain loop does, and writes its real
peaks to `FOLDER/<index>.json`. A specification is a plain dictionary; `edit` changes one thing in it, as a pull request would.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

WARMUP_STEPS, STEPS = 5, 2
OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
    "adamw, one by one": (torch.optim.AdamW, {"foreach": False}),
    "rmsprop": (torch.optim.RMSprop, {}),
    "adagrad": (torch.optim.Adagrad, {}),
}
CASTS = (None, "float16", "bfloat16", "float64")
EDITS = ("wider", "in-place", "del", "cast", "retained", "optimizer", "reshaped", "renamed", "learning rate")


class Block(nn.Module):
    """A convolution and what is done with it."""

    def __init__(self, spec: dict[str, Any], inputs: int) -> None:
        super().__init__()
        self.spec = spec
        layer = nn.Conv2d(inputs, spec["width"], 3, padding=1)
        self.add_module(spec["name"], layer)
        self.norm = nn.BatchNorm2d(spec["width"]) if spec["norm"] else nn.Identity()
        self.act = nn.ReLU(inplace=spec["inplace"])
        self.kept: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(getattr(self, self.spec["name"])(x))
        if self.spec["cast"]:
            cast = x.to(getattr(torch, self.spec["cast"]))
            x = (cast * 2).float()
        scaled = x * 0.5
        y = self.act(scaled + 1)
        if self.spec["del"]:
            del scaled, x
        if self.spec["reshaped"]:
            y = y.flatten(2).view_as(y)
        out = y * 3 + 1
        if self.spec["retained"]:
            self.kept = out.detach() * 1
        return out


class Net(nn.Module):
    """Blocks, and a head over means."""

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        widths = [3, *(block["width"] for block in spec["blocks"])]
        self.blocks = nn.Sequential(
            *(Block(block, width) for block, width in zip(spec["blocks"], widths, strict=False))
        )
        self.head = nn.Linear(widths[-1], spec["classes"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(x).mean((2, 3)))


def build_optimizer(spec: dict[str, Any], parameters: Any) -> torch.optim.Optimizer:
    kind, settings = OPTIMIZERS[spec["optimizer"]]
    return kind(parameters, lr=spec["lr"], **settings)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    images, labels = batch
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    return loss.detach()


def draw(seed: int) -> dict[str, Any]:
    """A specification."""
    choose = random.Random(seed)
    blocks = [
        {
            "name": "conv",
            "width": choose.choice([8, 16, 24, 32]),
            "norm": choose.random() < 0.5,
            "inplace": choose.random() < 0.7,
            "del": choose.random() < 0.7,
            "cast": choose.choice([None, None, None, "bfloat16"]),
            "reshaped": False,
            "retained": False,
        }
        for _ in range(choose.randint(2, 5))
    ]
    return {
        "blocks": blocks,
        "classes": choose.choice([10, 100, 1000]),
        "optimizer": choose.choice([*OPTIMIZERS]),
        "lr": 0.1,
        "batch": choose.choice([4, 8, 16]),
        "side": choose.choice([16, 32, 48]),
    }


def edit(spec: dict[str, Any], seed: int) -> tuple[str, dict[str, Any]]:
    """The name of one change and the specification with it."""
    choose = random.Random(seed)
    changed = json.loads(json.dumps(spec))
    kind = choose.choice(EDITS)
    place = choose.randrange(len(changed["blocks"]))
    block = changed["blocks"][place]
    if kind == "wider":
        block["width"] += choose.choice([1, 8, 64])
    elif kind in ("in-place", "del"):
        name = kind.replace("-", "")
        block[name] = not block[name]
    elif kind == "cast":
        block["cast"] = choose.choice([cast for cast in CASTS if cast != block["cast"]])
    elif kind in ("retained", "reshaped"):
        block[kind] = True
    elif kind == "optimizer":
        changed["optimizer"] = choose.choice([name for name in OPTIMIZERS if name != changed["optimizer"]])
    elif kind == "renamed":
        block["name"] = "projection"
    else:
        changed["lr"] = 0.01
    return f"{kind} at block {place}", changed


def train(spec: dict[str, Any]) -> dict[str, int]:
    """The real peaks of settled steps, in bytes."""
    torch.cuda.init()
    torch.manual_seed(42)
    model = Net(spec).train().to("cuda")
    optimizer = build_optimizer(spec, [*model.parameters()])
    images = torch.randn(spec["batch"], 3, spec["side"], spec["side"]).to("cuda")
    batch = images, torch.zeros(spec["batch"], dtype=torch.int64).to("cuda")
    del images
    for number in range(WARMUP_STEPS + STEPS):
        if number == WARMUP_STEPS:
            torch.cuda.reset_peak_memory_stats()
        loss = step(model, optimizer, batch)
    del loss
    statistics = torch.cuda.memory_stats()
    return {kind: statistics[f"{kind}_bytes.all.peak"] for kind in ("allocated", "reserved")}


def main() -> None:
    specs, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    for index, spec in enumerate(specs):
        child = os.fork()
        if not child:
            code = 1
            try:
                (folder / f"{index}.json").write_text(json.dumps(train(spec)))
                code = 0
            except BaseException:  # noqa: BLE001  a forked child must not return into the parent's code
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stderr.flush()
                os._exit(code)
        if os.waitpid(child, 0)[1]:
            raise SystemExit(f"specification {index} failed: {spec}")


if __name__ == "__main__":
    main()
