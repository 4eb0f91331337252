"""The models that `bench guard guard.toml --models guarded.py` knows."""

from model import LanguageModel, step

from bench.catalog import ModelEntry

INPUTS = ("int64[B,128]", "int64[B,128]")
ENTRIES = (ModelEntry("small_lm", lambda images: LanguageModel(), task=None, inputs=INPUTS, step=step),)
