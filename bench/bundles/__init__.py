"""Results that travel: one archive to publish, safe to open when others made it, and many hosts as one.

`write_bundle` writes the archive, `verify` names every file that changed, `open_bundle` unpacks one into a temporary
folder after the same checks, `merge_results` joins the results of several hosts. `open_results` is the door for all
that holds results: folders, bundles, and addresses of either (`bench.bundles.remote`).
"""

from bench.bundles.bundle import (
    BundleError,
    FileDifference,
    VerifiedBundle,
    Written,
    manifest_digest,
    open_bundle,
    safe_name,
    verify,
    write_bundle,
)
from bench.bundles.contents import Credits, bundle_files, default_target
from bench.bundles.merging import Merged, merge_results
from bench.bundles.remote import fetched, is_address, local_results, open_results, results_name

__all__ = [
    "BundleError",
    "Credits",
    "FileDifference",
    "Merged",
    "VerifiedBundle",
    "Written",
    "bundle_files",
    "default_target",
    "fetched",
    "is_address",
    "local_results",
    "manifest_digest",
    "merge_results",
    "open_bundle",
    "open_results",
    "results_name",
    "safe_name",
    "verify",
    "write_bundle",
]
