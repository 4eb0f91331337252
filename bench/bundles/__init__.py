"""Results that travel: one archive to publish, safe to open when others made it, and many hosts as one.

`write_bundle` writes the archive, `verify` names every file that changed, `open_bundle` and `open_results` unpack one
into a temporary folder after the same checks, `merge_results` joins the results of several hosts.
"""

from bench.bundles.bundle import (
    BundleError,
    FileDifference,
    VerifiedBundle,
    Written,
    open_bundle,
    open_results,
    safe_name,
    verify,
    write_bundle,
)
from bench.bundles.contents import bundle_files, default_target
from bench.bundles.merging import Merged, merge_results

__all__ = [
    "BundleError",
    "FileDifference",
    "Merged",
    "VerifiedBundle",
    "Written",
    "bundle_files",
    "default_target",
    "merge_results",
    "open_bundle",
    "open_results",
    "safe_name",
    "verify",
    "write_bundle",
]
