"""Links between pages, to their headings and to files lead somewhere."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in (".", "docs", "benchmarks")
    for path in (ROOT / folder).glob("*.md")
)
SOURCES = sorted(
    path
    for folder in ("ldm_jax", "configs", "benchmarks", "docs", ".")
    for ending in ("py", "ipynb", "yaml", "sh", "toml")
    for path in (ROOT / folder).glob(f"{'*' if folder == '.' else '**/*'}.{ending}")
)
# `[text](target)` and the target of an image; of those, what is not elsewhere.
LINK = re.compile(r"\]\((?!\w+:)([^)\s#]*)(?:#([^)\s]+))?\)")
# A page that code names, as in "see docs/data.md#channels".
NAMED = re.compile(r"\b(docs/\w+\.md|README\.md|CONTRIBUTING\.md)(?:#([\w-]+))?")


def prose(page):
    """A page without its blocks of code."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.sub(r"^( *)```.*?^\1```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page):
    """Names that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ +(.+?) *$", prose(page), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in headings
    }


def faults_of(links, folder, page=None):
    """Links that lead nowhere: (path or "" for the page itself, heading or "")."""
    for path, heading in links:
        target = (ROOT / folder / path).resolve() if path else ROOT / page
        if not target.exists():
            yield f"{path}: there is no such file"
        elif heading and heading not in anchors(target.relative_to(ROOT)):
            yield f"{path}#{heading}: there is no such heading"


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_lead_somewhere(page):
    links = LINK.findall(prose(page))
    assert list(faults_of(links, pathlib.Path(page).parent, page)) == []


def test_pages_that_code_names_are_there():
    links = {
        link
        for path in SOURCES
        for link in NAMED.findall(path.read_text(encoding="utf-8"))
    }
    assert len(links) > 5
    assert list(faults_of(sorted(links), ".")) == []


def test_a_link_that_leads_nowhere_is_found():
    links = LINK.findall("[a](docs/none.md) [b](docs/data.md#none) [c](https://x.org)")
    assert links == [("docs/none.md", ""), ("docs/data.md", "none")]
    assert len(list(faults_of(links, "."))) == 2
