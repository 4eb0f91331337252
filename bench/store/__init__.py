"""Results on disk: immutable Parquet parts, and one frame that joins them.

A results folder contains `plan-NNNN.parquet` (the planned runs), `runs/` (one part per run), `estimates/` (parts of one
row per case and device) and `logs/` (what each run printed). The files are the journal: a run exists if and only if its
part does. `consolidated/` has a copy of the runs in one file, for speed.
"""

from bench.store.consolidated import Damaged, consolidate
from bench.store.folder import DATA_FOLDER, Finished, Store
from bench.store.load import Loaded, Notes, load_notes, load_results, planned_runs, read_results, results_folders
from bench.store.schema import SCHEMA_VERSION

__all__ = [
    "DATA_FOLDER",
    "SCHEMA_VERSION",
    "Damaged",
    "Finished",
    "Loaded",
    "Notes",
    "Store",
    "consolidate",
    "load_notes",
    "load_results",
    "planned_runs",
    "read_results",
    "results_folders",
]
