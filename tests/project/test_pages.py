"""Links of all pages, also of those that are not in the site; what the reference lists; pictures."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import bucket_moo_ext as moo
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [page for pattern in ("*.md", "docs/**/*.md", "examples/*/README.md") for page in sorted(ROOT.glob(pattern))]
SVG = "{http://www.w3.org/2000/svg}"


def _without_code(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def _anchors(page: Path) -> set[str]:
    """As a code host makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", _without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=[page.relative_to(ROOT).as_posix() for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", _without_code(page))):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert not anchor or anchor in _anchors(found), target


def test_every_public_name_is_in_the_reference() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.rst"))
    listed = set(re.findall(r"^\.\. auto(?:function|class|data):: (\w+)$", pages, re.MULTILINE))
    observe = {"Recorder", "StepProbe"}  # which the whole module's page has
    assert listed == set(moo.__all__) - observe - {"__version__"}
    modules = set(re.findall(r"^\.\. automodule:: bucket_moo_ext\.([\w.]+)$", pages, re.MULTILINE))
    package = Path(moo.__file__).parent
    contrib = {f"contrib.{path.stem}" for path in (package / "contrib").glob("*.py") if path.stem[0] != "_"}
    assert modules == {"data", "observe"} | contrib


@pytest.mark.parametrize("picture", sorted((ROOT / "docs" / "figures").glob("*.svg")), ids=lambda path: path.stem)
def test_a_picture_has_a_title_and_a_background_of_its_own(picture: Path) -> None:
    """So that it can be read on pages of any colour."""
    root = ET.parse(picture).getroot()
    title, first = root.find(f"{SVG}title"), root.find(f"{SVG}rect")
    assert title is not None
    assert title.text
    assert first is not None
    assert (first.get("width"), first.get("height")) == (root.get("width"), root.get("height"))
