"""A user's directory with a small model, data and a judge, one mistake in it, and what is answered."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from launch.cli import main
from launch.cluster import wiring
from tests.fakes.models import tiny_llama

RUN = """name: run
updates: 2
model: {path: ./model}
prompts: {source: prompts.jsonl, max_prompt_tokens: 16}
sampling: {completions_per_prompt: 2, max_new_tokens: 8}
generators: {dtype: float32, max_model_len: 32, kv_cache_mib: 16}
judging: {judge: {kind: function, path: 'judge:score'}}
replay: {prompts_per_update: 2}
learner: {dtype: float32}
publication: {canary_tokens: 8}
evaluation: {prompts: 4}
"""
SFT = "name: sft\nmodel: {path: ./model}\ndata: {source: demos.jsonl, max_tokens: 32}\nlearner: {dtype: float32}\n"
JUDGE = "def score(prompt, completions):\n    return [float(len(c.text)) for c in completions]\n"
ROW = '{"prompt": "w5", "answer": "w6"}\n'
Change = Callable[[Path], Any]


@dataclass(frozen=True)
class Mistake:
    """What is typed, in a directory with these files and this change, and words that the answer must have."""

    what: str
    typed: tuple[str, ...]
    words: tuple[str, ...]
    files: dict[str, str | bytes] = field(default_factory=dict)
    change: Change = lambda directory: None


def train(*settings: str) -> tuple[str, ...]:
    return ("train", "run.yaml", *settings)


def each(mistakes: list[Mistake]) -> Any:
    """Parametrize over mistakes."""
    return pytest.mark.parametrize("mistake", mistakes, ids=lambda mistake: mistake.what)


def rewritten(file: str, **changes: Any) -> Change:
    """Change entries of one of the model's JSON files; None removes one."""

    def change(directory: Path) -> None:
        path = directory / "model" / file
        entries = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({name: value for name, value in entries.items() if value is not None}))

    return change


@pytest.fixture(scope="session")
def users_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("user")
    tiny_llama(directory / "model", seed=0)
    (directory / "run.yaml").write_text(RUN)
    (directory / "sft.yaml").write_text(SFT)
    (directory / "judge.py").write_text(JUDGE)
    words = [f"w{number}" for number in range(2, 40)]
    (directory / "prompts.jsonl").write_text("".join(json.dumps({"prompt": w, "answer": w}) + "\n" for w in words))
    (directory / "demos.jsonl").write_text("".join(json.dumps({"prompt": w, "response": w}) + "\n" for w in words))
    return directory


class RayStartedError(BaseException):
    """Nothing heavy may start over a mistake."""


@pytest.fixture
def ray_would_start(monkeypatch: pytest.MonkeyPatch) -> type[RayStartedError]:
    def start(*_: object) -> None:
        raise RayStartedError

    monkeypatch.setattr(wiring, "ray_session", start)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return RayStartedError


def answered(mistake: Mistake, capsys: pytest.CaptureFixture[str]) -> None:
    """Type what a mistake says in the working directory; compare the answer, and that nothing is left behind."""
    for name, content in mistake.files.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    mistake.change(Path())
    before = listing()
    code = main(mistake.typed)
    error = capsys.readouterr().err
    said = error[error.index("offbeat: error: ") :]
    assert code == 2, error
    assert "Traceback" not in error
    missing = [words for words in mistake.words if words not in said]
    assert not missing, said
    assert listing() == before


def listing() -> set[str]:
    """Return what is in the working directory, without what Python leaves."""
    return {str(path) for path in Path().rglob("*") if "__pycache__" not in path.parts}
