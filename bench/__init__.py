"""Measure and estimate the memory and speed of training steps, side by side.

What scripts and notebooks use is here; `docs/api.md` shows it at work:

* `load`: the runs of results folders as a pandas frame;
* `estimate`, `fit`, `save_memory`, `timeline`: memory and speed of a step on a GPU that need not be here, the batches
  that it holds, what makes a batch fit, and memory over the step, of a model of the catalog or of your own;
* `choose`: GPUs ranked for a step by time, energy or cost;
* `compare`: what changed between two results, and whether it can be told from noise;
* `history`: each case over results of different dates or versions, and where its level changed;
* `reproduce`: results of others measured again, with an answer for each case;
* `measure_noise`: which differences can be seen on this machine, and what disturbs it;
* `build_site`: a static site from the results of many machines and people.

Importing this is cheap: what a function needs is imported when it is called, and torch only in other processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.api import (
        build_site,
        choose,
        compare,
        estimate,
        fit,
        history,
        load,
        measure_noise,
        reproduce,
        save_memory,
        timeline,
    )

__version__ = "0.1.0"
__all__ = [
    "build_site",
    "choose",
    "compare",
    "estimate",
    "fit",
    "history",
    "load",
    "measure_noise",
    "reproduce",
    "save_memory",
    "timeline",
]


def __getattr__(name: str) -> Any:
    """One of the functions above, from `bench.api`."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bench import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
