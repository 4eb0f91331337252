"""From runs to statements: pure functions from frames to frames, findings and sentences; no torch, no files' contents.

`summarise_cases` makes one row a case; `estimator_errors` says how far each estimator is off; `judge` finds what a
reader must know before trusting or publishing the numbers, by one table of rules (`bench.analysis.findings`);
`headline` is the answer in a sentence.
"""

from bench.analysis.cases import GROUP, in_reading_order, last_attempts, spread_cards, spread_hosts, summarise_cases
from bench.analysis.energy import counted_energy_j
from bench.analysis.estimates import COMPARISONS, EstimatePair, estimator_errors, gpu_memory_bytes
from bench.analysis.findings import RULES, CaseNames, Finding, Findings, Weakens, damaged_parts, judge
from bench.analysis.headline import best_cases, headline
from bench.analysis.labels import CaseLabels, machine_labels
from bench.analysis.reproduction import (
    Reproduced,
    reproductions,
    results_key,
    told_answers,
    told_differences,
    told_reproductions,
)

__all__ = [
    "COMPARISONS",
    "GROUP",
    "RULES",
    "CaseLabels",
    "CaseNames",
    "EstimatePair",
    "Finding",
    "Findings",
    "Reproduced",
    "Weakens",
    "best_cases",
    "counted_energy_j",
    "damaged_parts",
    "estimator_errors",
    "gpu_memory_bytes",
    "headline",
    "in_reading_order",
    "judge",
    "last_attempts",
    "machine_labels",
    "reproductions",
    "results_key",
    "spread_cards",
    "spread_hosts",
    "summarise_cases",
    "told_answers",
    "told_differences",
    "told_reproductions",
]
