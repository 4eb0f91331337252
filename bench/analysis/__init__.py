"""From runs to statements: pure functions from frames to frames, findings and sentences; no torch, no files' contents.

`summarise_cases` makes one row a case; `estimator_errors` says how far each estimator is off; `validity` lists what was
not kept; `headline` is the answer in a sentence; `damaged_parts` is what loading left out.
"""

from bench.analysis.cases import GROUP, in_reading_order, last_attempts, summarise_cases
from bench.analysis.completeness import earlier_plans
from bench.analysis.damaged import damaged_parts
from bench.analysis.estimates import COMPARISONS, Comparison, estimator_errors
from bench.analysis.findings import Finding
from bench.analysis.headline import best_cases, headline
from bench.analysis.labels import CaseLabels, machine_labels
from bench.analysis.validity import CONSISTENCY_WINDOW, validity

__all__ = [
    "COMPARISONS",
    "CONSISTENCY_WINDOW",
    "GROUP",
    "CaseLabels",
    "Comparison",
    "Finding",
    "best_cases",
    "damaged_parts",
    "earlier_plans",
    "estimator_errors",
    "headline",
    "in_reading_order",
    "last_attempts",
    "machine_labels",
    "summarise_cases",
    "validity",
]
