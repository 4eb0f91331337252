"""A sweep's configuration: TOML, checked whole before any device is touched.

Every fault of a file is reported at once, each with its place, what was given, what is allowed and the nearest match.
Axes take one value, a list, or (whole numbers) ranges: `{ pow2 = [16, 4096] }`, `{ from = 32, to = 256, step = 32 }`.
"""

from bench.config.load import check_config, load_config
from bench.config.sections import Exclude, Grid, Include, SweepConfig

__all__ = ["Exclude", "Grid", "Include", "SweepConfig", "check_config", "load_config"]
