"""Each row of the page on mishaps names the test that makes the mishap happen."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_each_mishap_of_the_page_has_its_test() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text("utf-8").partition("## Mishaps")[2]
    rows = [line for line in page.splitlines() if line.startswith("|")][2:]
    assert len(rows) >= 15
    for row in rows:
        named = re.search(r"`(tests/\S+\.py)::(test_\w+)` \|$", row)
        assert named, f"no test in: {row}"
        assert f"def {named[2]}(" in (ROOT / named[1]).read_text("utf-8"), row
