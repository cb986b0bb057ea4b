"""The documentation against the code: links, settings, commands, configuration examples, names of outputs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.replay_buffer.config import ReplayConfig
from actors.replay_buffer.admission import Admission
from launch.cli import app
from launch.output.summary import Summary
from launch.settings.fields import settings
from launch.settings import verbs
from launch.settings.loading import load_config
from learner.records import UpdateStats

ROOT = Path(__file__).resolve().parent.parent
PAGES = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if page.is_file()]
VERBS = {"config": verbs.TRAIN, "sft": verbs.SFT, "preference": verbs.PREFERENCE, "dpo": verbs.DPO}
"""How a page marks a YAML block that is a whole configuration, and of which verb."""
SETTINGS = {setting.key for verb in VERBS.values() for setting in settings(verb.model)}
SECTIONS = {".".join(key.split(".")[:depth]) for key in SETTINGS for depth in range(1, key.count(".") + 1)}
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
CODE = re.compile(r"`([^`\n]+)`")
DOTTED = re.compile(r"([a-z_]+(?:\.[a-z_0-9]+)+)(?:=.*|: .*)?")
ASSIGNED = re.compile(r"\b([a-z_]+(?:\.[a-z_0-9]+)+)=")
REPOSITORY_PATH = re.compile(
    r"\b(?:actors|learner|launch|tests|docs|docker|benchmarks)/[\w./-]*\.(?:py|md|yaml|sbatch)\b"
)
CONFIG_EXAMPLE = re.compile(rf"^```yaml ({'|'.join(VERBS)})\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:^ {4,}(?:[A-Z_]+=\S+ )*|`)offbeat ((?:submit )?[a-z]+)", re.MULTILINE)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = HEADING.findall(FENCED.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def named_settings(text: str) -> Iterator[str]:
    """Dotted names below a section of the configuration, in backticks or assigned; modules and files are none."""
    names = {match[1] for code in CODE.findall(text) if (match := DOTTED.fullmatch(code))} | set(ASSIGNED.findall(text))
    for name in sorted(names):
        first, second, *_ = name.split(".")
        is_module = (ROOT / first / f"{second}.py").exists() or (ROOT / first / second / "__init__.py").exists()
        if first in SECTIONS and not is_module and second not in ("py", "md", "yaml", "json"):
            yield name


def config_examples() -> Iterator[Any]:
    for page in PAGES:
        for number, (verb, example) in enumerate(CONFIG_EXAMPLE.findall(page.read_text())):
            yield pytest.param(verb, example, id=f"{page.name}-{number}")


def registered_commands() -> set[str]:
    def below(parent: Any) -> Iterator[str]:
        yield from (command.name or command.callback.__name__ for command in parent.registered_commands)
        for group in parent.registered_groups:
            yield group.name
            yield from (f"{group.name} {name}" for name in below(group.typer_instance))

    return set(below(app))


def in_code(page: str) -> set[str]:
    return set(CODE.findall((ROOT / "docs" / page).read_text()))


@each_page
def test_every_relative_link_resolves(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target} leads nowhere"
        assert not anchor or anchor in anchors(file), f"{target}: no such heading among {sorted(anchors(file))}"


@each_page
def test_every_file_of_the_repository_that_a_page_names_exists(page: Path) -> None:
    missing = [path for path in REPOSITORY_PATH.findall(page.read_text()) if not (ROOT / path).exists()]
    assert not missing


@each_page
def test_every_setting_that_a_page_names_exists(page: Path) -> None:
    unknown = [name for name in named_settings(page.read_text()) if name not in SETTINGS | SECTIONS]
    assert not unknown


@each_page
def test_every_command_that_a_page_names_exists(page: Path) -> None:
    assert set(COMMAND.findall(page.read_text())) <= registered_commands()


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


def test_names_that_do_not_exist_are_found() -> None:
    """The checks above see what they are meant to see."""
    text = "`replay.max_stalenes`, `replay.order: ready`, `learner.world.exact`, `world.py`\n\n"
    text += "    offbeat demo learner.rank=2\n"
    assert list(named_settings(text)) == ["learner.rank", "replay.max_stalenes", "replay.order"]
    assert COMMAND.findall("    offbeat replay RUN\n`offbeat submit ray`") == ["replay", "submit ray"]
