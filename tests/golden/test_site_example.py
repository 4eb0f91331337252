"""The site in the repository: its bundles are intact, and their numbers are what the pages have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

SITE = Path(__file__).parents[2] / "reports" / "site"


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from bench.site import build_site

    target = tmp_path_factory.mktemp("example") / "site"
    title = json.loads((SITE / "site.json").read_text())["settings"]["title"]
    build_site(target, sorted((SITE / "bundles").glob("*.zip")), title=title)
    return target


def test_its_bundles_make_the_same_files(again: Path) -> None:
    names = [
        {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        for folder in (SITE, again)
    ]
    assert names[0] == names[1]
    assert len(list((SITE / "bundles").glob("*.zip"))) == 3


def test_its_numbers_are_those_of_its_bundles(again: Path) -> None:
    """What findings and pages say may be worded anew; `bench site reports/site` then makes the pages again."""
    for path in (SITE / "bundles").glob("*.json"):
        kept, made = (json.loads((folder / "bundles" / path.name).read_text()) for folder in (SITE, again))
        for name in ("name", "digest", "size_bytes", "ended_unix_s", "runs"):
            assert kept[name] == made[name]
        for one, two in zip(kept["cases"], made["cases"], strict=True):
            for name in ("key", "axes", "device", "hosts", "status", "values", "peak_allocated_bytes"):
                assert one[name] == two[name]
