"""What stands against publishing numbers that hold for a reader, rule by rule."""

from __future__ import annotations

from collections.abc import Sequence

from bench.analysis import Weakens
from bench.report.blocks import Block, Code, Paragraph
from bench.report.contents import Contents, Section
from bench.report.verdict import show_findings
from bench.report.words import listed

_MAX_CASES = 8


def build(contents: Contents) -> Sequence[Block]:
    """The verdict in a sentence, and every finding that weakens publishing alone."""
    findings = contents.findings
    if findings.publishable:
        return [Paragraph(("Yes. ", Code("bench check"), " compares these numbers and figures with the data again."))]
    weak = [finding.code.replace("_", " ") for finding in findings.weakening(Weakens.READING)]
    own = findings.weakening(Weakens.PUBLISHING)
    first = (
        f"No: what weakens the numbers ({listed(weak, 8)}; see Validity) forbids publishing them too." if weak else ""
    )
    second = f"{'These stand' if weak else 'No: these stand'} against publishing{' as well' if weak else ''}:"
    return [Paragraph(" ".join(filter(None, (first, second if own else "")))), *show_findings(own, contents)]


SECTION = Section(order=25, title="Fit to publish?", build=build)
