"""The guard against real peaks: what moves them is reported, and nothing else. The whole form is `guarded_edits.py`."""

from __future__ import annotations

from .stub import StubDriver


def test_the_guard_reports_exactly_the_edits_that_move_the_real_peak(stub_driver: StubDriver) -> None:
    from .guarded_edits import check

    found = check(stub_driver, 8, seed=1)
    assert [(each.kind, each.moved, each.reported) for each in found if each.moved != each.reported] == []
    assert any(each.moved for each in found) and not all(each.moved for each in found)
    assert all(each.exact for each in found)
    assert all(each.change.moved for each in found if each.moved)
