"""docs/data.md: its programs run."""

import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"


def test_the_programs_of_the_page_run() -> None:
    programs = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert len(programs) == 2
    names: dict[str, Any] = {}
    for program in programs:
        exec(program, names)  # the second goes on from the first
    report = names["state"].report()
    assert (report.passes, len(report.objectives)) == (3, 3)
    assert names["stream"].skipped.keys() == {"de", "sw", "tr"}
