"""The shipped roofline against timm's measurements: `python speed_child.py FOLDER`, through tools/fit_roofline.py."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from bench.estimators.roofline import CONSTANTS
from tools import fit_roofline


def main() -> None:
    """Print the errors as that tool does, all and by memory format."""
    steps = fit_roofline.load_steps(Path(sys.argv[1]))
    cases = [fit_roofline.step_case(row) for row in steps.itertuples()]
    kernels = fit_roofline.load_kernels(cases)
    measured = (steps.train_batch_size / steps.train_samples_per_sec).to_numpy()
    fit_roofline.report("shipped", fit_roofline.step_times(cases, kernels, CONSTANTS), measured, cases)


if __name__ == "__main__":
    main()
