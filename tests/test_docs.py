"""The documentation against the code: links, configuration examples, names of outputs.

`test_texts.py` checks the commands, settings, modules and files that a page names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.replay_buffer.admission import Admission
from actors.replay_buffer.config import ReplayConfig
from launch.output.summary import Summary
from launch.settings import verbs
from launch.settings.loading import load_config
from learner.records import UpdateStats

ROOT = Path(__file__).resolve().parent.parent
PAGES = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if page.is_file()]
VERBS = {"config": verbs.TRAIN, "sft": verbs.SFT, "preference": verbs.PREFERENCE, "dpo": verbs.DPO}
"""How a page marks a YAML block that is a whole configuration, and of which verb."""
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
CODE = re.compile(r"`([^`\n]+)`")
CONFIG_EXAMPLE = re.compile(rf"^```yaml ({'|'.join(VERBS)})\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = HEADING.findall(FENCED.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def config_examples() -> Iterator[Any]:
    for page in PAGES:
        for number, (verb, example) in enumerate(CONFIG_EXAMPLE.findall(page.read_text())):
            yield pytest.param(verb, example, id=f"{page.name}-{number}")


def in_code(page: str) -> set[str]:
    return set(CODE.findall((ROOT / "docs" / page).read_text()))


def dead_links(page: Path) -> Iterator[str]:
    for target in LINK.findall(page.read_text()):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if re.match(r"[a-z]+:", target):
            continue
        if not file.exists():
            yield f"{page.name}: {target} leads nowhere"
        elif anchor and anchor not in anchors(file):
            yield f"{page.name}: {target}: no such heading among {sorted(anchors(file))}"


def test_every_relative_link_resolves() -> None:
    assert [link for page in PAGES for link in dead_links(page)] == []


@pytest.mark.parametrize(("verb", "example"), config_examples())
def test_every_configuration_example_loads(verb: str, example: str, tmp_path: Path) -> None:
    path = tmp_path / "example.yaml"
    path.write_text(example)
    load_config(path, [], VERBS[verb])


def test_every_page_is_in_the_index() -> None:
    linked = set(LINK.findall((ROOT / "docs" / "README.md").read_text()))
    assert linked >= {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}


def test_every_key_of_the_summary_is_described() -> None:
    assert set(Summary.model_fields) <= in_code("outputs.md")


def test_every_training_metric_is_described() -> None:
    assert set(UpdateStats.__dataclass_fields__) <= in_code("losses.md")


def test_every_key_of_the_ledger_is_described() -> None:
    assert set(Admission(ReplayConfig()).ledger()) <= in_code("staleness.md")
