"""The documentation against the code: links, configuration examples, names of outputs.

`test_texts.py` checks the commands, settings, modules and files that a page names.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from actors.replay_buffer.admission import Admission
from actors.replay_buffer.config import ReplayConfig
from launch.output.summary import Summary
from launch.settings import verbs
from launch.settings.loading import load_config
from learner.records import UpdateStats
from tests.house import TOPS
from tests.test_texts import literals

ROOT = Path(__file__).resolve().parent.parent
PAGES = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if page.is_file()]
VERBS = {"config": verbs.TRAIN} | {name: verbs.VERBS[name] for name in ("sft", "preference", "dpo", "sweep")}
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


TEST = re.compile(r"\[(test_\w+)\]\(([^)#]+\.py)\)")
RESULT = re.compile(r"`(benchmarks/results/[^`]+)`|\(benchmarks\.md#[^)]+\)")
MANY = 40


def rows_of_faults(page: str) -> list[str]:
    """The rows of all tables of a page, without their heads."""
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    return [row for row in rows if not row.startswith("| fault |")]


def unshown(page: str, folder: Path) -> Iterator[str]:
    """What is wrong with what the rows of a page name as shown: a test that is not there, or nothing at all."""
    for row in rows_of_faults(page):
        fault, _, shown = (cell.strip() for cell in row.strip("| ").split(" | "))
        tests, trials = TEST.findall(shown), RESULT.findall(shown)
        if not tests and not trials:
            yield f"{fault}: neither a test nor a trial"
        yield from (f"{fault}: no {trial}" for trial in trials if trial and not (ROOT / trial).is_file())
        for name, target in tests:
            file = (folder / target).resolve()
            if not file.is_file() or name not in functions_of(file):
                yield f"{fault}: no {name} in {target}"


@cache
def functions_of(file: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_fault_names_a_test_that_is_there_or_a_recorded_trial() -> None:
    page = (ROOT / "docs" / "faults.md").read_text()
    assert list(unshown(page, ROOT / "docs")) == []
    assert len({row.split(" | ")[0] for row in rows_of_faults(page)}) >= MANY


def test_a_fault_without_its_test_is_found() -> None:
    here = "../tests/test_docs.py"
    page = f"""
| fault | what happens | shown by |
|---|---|---|
| fine | x | [test_a_fault_without_its_test_is_found]({here}), `benchmarks/results/chaos.json` |
| renamed | x | [test_of_yesterday]({here}) |
| moved | x | [test_a_fault_without_its_test_is_found](../tests/nowhere.py) |
| lost | x | `benchmarks/results/nothing.json` |
| bare | x | said so |
"""
    assert list(unshown(page, ROOT / "docs")) == [
        f"renamed: no test_of_yesterday in {here}",
        "moved: no test_a_fault_without_its_test_is_found in ../tests/nowhere.py",
        "lost: no benchmarks/results/nothing.json",
        "bare: neither a test nor a trial",
    ]


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


# ---------------------------------------------------------------- messages

MESSAGE = re.compile(r"^\| `([^`]+)` \| [^|]+ \| [^|]+ \|$", re.MULTILINE)
MESSAGES = 20


@cache
def messages() -> tuple[str, ...]:
    """Every string literal of the product; `…` stands for what an f-string fills in."""
    trees = [ast.parse(path.read_text("utf-8")) for top in TOPS for path in (ROOT / top).rglob("*.py")]
    return tuple(text for tree in trees for _, text in literals(tree))


def unknown_messages(page: str) -> list[str]:
    """The messages in a page's tables that no literal has."""
    return [each for each in MESSAGE.findall(page) if not any(each in text for text in messages())]


def test_every_message_that_has_a_remedy_is_in_the_source() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    assert unknown_messages(page) == []
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| message |")]
    assert len(rows) == len(set(MESSAGE.findall(page))) >= MESSAGES, "a row that does not begin with its message"


def test_a_message_of_yesterday_is_found() -> None:
    page = "| `output directory … is full` | x | y |\n| `output directory … is not empty` | x | y |\n"
    assert unknown_messages(page) == ["output directory … is full"]
