"""Results that travel: one archive to publish, opened safely when it comes from somebody else, and many hosts as one.

`write_bundle` makes the archive, `verify` names every byte of one that changed, `open_bundle` and `open_results` unpack
one into a temporary folder after the same checks, `merge_results` joins the results of several hosts.
"""

from bench.bundles.archive import BundleError
from bench.bundles.contents import bundle_files, default_target
from bench.bundles.merging import Merged, merge_results
from bench.bundles.names import safe_name
from bench.bundles.opening import open_bundle, open_results
from bench.bundles.verifying import Difference, Verified, verify
from bench.bundles.writing import Written, write_bundle

__all__ = [
    "BundleError", "Difference", "Merged", "Verified", "Written", "bundle_files", "default_target", "merge_results",
    "open_bundle", "open_results", "safe_name", "verify", "write_bundle",
]  # fmt: skip
