"""The figures: one file each, which defines `FIGURE`, a `FigureKind`. A new figure is one new file here."""
