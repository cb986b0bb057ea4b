"""The documentation as a site, which `make docs` builds: what `mkdocs.yml` lists, and what `docs/hooks.py` adds."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from launch.settings.fields import by_section, settings
from launch.settings.verbs import VERBS
from tests.test_docs import LINK

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
INDEX_SECTION = re.compile(r"^## (.+)\n((?:(?!## ).*\n)*)", re.MULTILINE)


def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOKS = hooks()


class Loader(yaml.SafeLoader):
    """Reads `mkdocs.yml`, which names Python functions."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def navigation() -> dict[str, list[str]]:
    """The pages of each section, in order."""
    document: Any = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)
    return {
        name: [page for entry in entries for page in entry.values()]
        for section in document["nav"]
        for name, entries in section.items()
    }


def index() -> dict[str, list[str]]:
    """The pages that each section of docs/README.md links to, once, as the navigation names them."""
    sections = INDEX_SECTION.findall((DOCS / "README.md").read_text())
    pages = {name: [link.partition("#")[0] for link in LINK.findall(text)] for name, text in sections}
    return {
        name: [f"repository/{page[3:]}" if page[:3] == "../" else page for page in own] for name, own in pages.items()
    }


def test_the_navigation_lists_every_page_once() -> None:
    listed = [page for pages in navigation().values() for page in pages]
    assert len(set(listed)) == len(listed)
    written = {page.name for page in DOCS.glob("*.md")}
    made = {f"settings/{verb}.md" for verb in VERBS} | {"repository/SECURITY.md", "repository/CONTRIBUTING.md"}
    assert set(listed) == written | made


def test_the_index_has_the_sections_and_pages_of_the_navigation() -> None:
    """But itself, and the settings, which are pages of the site alone."""
    shown = {
        name: [page for page in pages if page != "README.md" and not page.startswith("settings/")]
        for name, pages in navigation().items()
    }
    assert index() == shown


def test_a_link_leads_to_the_site_s_page_of_what_it_means_on_github() -> None:
    page = (
        "[a](judges.md#ties) [b](../SECURITY.md) [c](../tests/test_site.py) [d](https://x.org) "
        "[e](#here) ![f](figures/board.svg)"
    )
    assert HOOKS.led(page, "install.md") == (
        "[a](judges.md#ties) [b](repository/SECURITY.md) [c](repository/tests/test_site.py.md) [d](https://x.org) "
        "[e](#here) ![f](figures/board.svg)"
    )
    assert HOOKS.led("[a](docs/judges.md#ties) [b](CONTRIBUTING.md)", "repository/SECURITY.md") == (
        "[a](../judges.md#ties) [b](CONTRIBUTING.md)"
    )


def test_every_file_outside_of_docs_that_a_page_leads_to_is_a_page() -> None:
    """SECURITY.md leads on to pages and files; a file that is not there is left to the check of links."""
    pages = {f"docs/{page.name}" for page in DOCS.glob("*.md")}
    found = HOOKS.outside(pages)
    linked = {
        (DOCS / link.partition("#")[0]).resolve().relative_to(ROOT).as_posix()
        for page in DOCS.glob("*.md")
        for link in LINK.findall(page.read_text())
        if link.startswith("../")
    }
    assert linked
    assert linked <= found
    assert not any(path.startswith("docs/") for path in found)
    assert HOOKS.content_of("SECURITY.md") == (ROOT / "SECURITY.md").read_text()
    assert (ROOT / "tests" / "test_site.py").read_text() in HOOKS.content_of("tests/test_site.py")


def rows(text: str) -> Iterator[list[str]]:
    """The cells of a page's tables, without their heads."""
    for line in text.splitlines():
        if line.startswith("| <code>"):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_the_settings_of_a_verb_are_a_table_for_each_section(verb: Any) -> None:
    text = HOOKS.settings_page(verb)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == [name or "run" for name in by_section(verb.model)]
    found = {cells[0]: cells for cells in rows(text)}
    assert set(found) == {f"<code>{setting.key}</code>" for setting in settings(verb.model)}
    assert all(len(cells) == 4 and all(cells[1:3]) for cells in found.values())


def test_a_row_says_type_default_and_meaning() -> None:
    [row] = [cells for cells in rows(HOOKS.settings_page(VERBS["train"])) if cells[0] == "<code>replay.order</code>"]
    assert row[1:3] == ["lease &#124; ready", "<code>lease</code>"], "a bar would end the cell"
