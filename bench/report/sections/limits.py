"""What the numbers do not cover."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

from bench import catalog
from bench.devices.kept_noise import KeptNoise
from bench.errors import BenchError
from bench.report.blocks import Block, Bullets, Code
from bench.report.contents import Contents, Section
from bench.stats import PUBLISHED_PROCESSES


def build(contents: Contents) -> Sequence[Block]:
    """A list that follows from what was and was not done."""
    summary = contents.summary
    items: list[str | tuple[str | Code, ...]] = []
    if contents.cpu_only:
        items.append(
            "Everything was measured on a CPU. GPU speeds differ by orders of magnitude, a GPU's allocator rounds and "
            "caches, and its context takes memory of its own: none of that is covered here."
        )
    items.append(
        "Intervals say where the mean over further fresh processes on the same machine would lie; another machine of "
        "the same type can differ by more. With few processes they are wide; published numbers take "
        f"{PUBLISHED_PROCESSES}."
    )
    items += [f"{sentence}." for sentence in _noise(contents)]
    items.append(
        "Peaks are those of the measured steps in a fresh process; a first step, an evaluation or a checkpoint can "
        "take more."
    )
    if summary["formula_bytes"].notna().any():
        items.append(
            (
                "The formula counts parameters, gradients, optimizer state, the batch and the activations of leaf "
                "modules. It leaves out temporaries of kernels, workspaces, the allocator's rounding and the context: "
                "it is a lower bound in most cases. Its error is in the column ",
                Code("formula_relative_error"),
                " of the table.",
            )
        )
    inputs = set(summary["input"].dropna())
    if inputs == {"synthetic"}:
        items.append("The batch was already on the device: these speeds exclude loading and decoding images.")
    items += [f"{model}: {note}." for model, note in _model_notes(summary["model"].dropna().unique())]
    items.append("Nothing here says how well a model learns: batch sizes are compared by speed and memory only.")
    return [Bullets(items)]


def _noise(contents: Contents) -> list[str]:
    """Which differences can be seen where this was measured, as the sweeps noted it; none where none did."""
    kept = [KeptNoise.read(note["noise"]) for note in contents.notes if note.get("noise")]
    return list(dict.fromkeys(noise.sentence for noise in kept if noise is not None))


def _model_notes(models: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The models that are not all that their name suggests, with what they are."""
    for model in sorted(models):
        with contextlib.suppress(BenchError):  # of a package, or a torchvision, that is not here
            if note := catalog.model_note(catalog.parse_choice("model", model)):
                yield model, note


SECTION = Section(order=60, title="Limits", build=build)
