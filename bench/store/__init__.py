"""Results on disk: immutable Parquet parts, and one frame that joins them.

A results folder holds `plan-NNNN.parquet` (what was to be run), `runs/` (one part a run), `estimates/` (parts of one
row a case and device) and `logs/` (what each run printed). The files are the journal: a run exists if and only if its
part does.
"""

from bench.store.folder import DATA_FOLDER, Finished, Store
from bench.store.load import Notes, load_notes, load_results, planned_runs
from bench.store.schema import SCHEMA_VERSION

__all__ = [
    "DATA_FOLDER", "SCHEMA_VERSION", "Finished", "Notes", "Store", "load_notes", "load_results", "planned_runs",
]  # fmt: skip
