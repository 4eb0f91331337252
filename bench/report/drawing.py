"""A figure as it leaves the room that drew it."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Drawing:
    """A drawn figure with everything that goes beside it.

    Attributes:
        name: Of its files: `figures/<name>.png` and `.csv`.
        title: For people.
        caption: How to read it, and what it leaves to the CSV.
        alt: What it shows, with the main numbers, for those who do not see it.
        figure: The figure, in the light colours of `bench.report.theme`.
        numbers: Exactly the numbers drawn; rows that did not fit have `drawn` false.
    """

    name: str
    title: str
    caption: str
    alt: str
    figure: Figure
    numbers: pd.DataFrame
