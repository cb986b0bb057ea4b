"""Samples of a run: of one prompt, now and then, the best and the worst answer, in `samples.jsonl` and in the log."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from actors.errors import writing
from actors.files import atomic_write
from actors.records import Completion, Group, Prompt
from actors.replay_buffer.buffer import Batch
from actors.replay_buffer.pairing import MissingEos, effective_scores
from launch.output.metrics import MetricsWriter, read_json_lines, truncate_after
from launch.output.run_directory import no_run
from launch.settings.loading import RECORDED
from launch.settings.output import SamplesConfig

SAMPLES = "samples.jsonl"
BEFORE_AND_AFTER = "evaluation/answers.jsonl"
Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion, as people read it."""

    text: str
    score: float  # the judge's, or that of an answer without an end
    version: int  # the oldest policy version that sampled a token of it
    finished: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt of an update, and the policy's answers."""

    step: int
    """Updates done with this one."""
    prompt_id: str
    prompt: str  # of a chat, its last message
    best: Answer
    worst: Answer


def sample_of(batch: Batch, missing_eos_score: MissingEos, template: str = "{prompt}") -> Sample | None:
    """Return the best and the worst answer to the batch's first prompt; None if the batch is empty.

    `template` is that of texts: of a prompt in it, what stands in its place is shown.

    Always the first, so that nobody chose. Opponents' completions are left out.
    """
    if not batch.groups:
        return None
    group = batch.groups[0]
    scores = effective_scores(group, missing_eos_score)
    own = [number for number, each in enumerate(group.completions) if not each.opponent]
    ranked = sorted(own, key=lambda number: -scores[number])
    best, worst = (_answer(group.completions[number], scores[number]) for number in (ranked[0], ranked[-1]))
    prompt = group.lease.prompt
    return Sample(batch.update + 1, prompt.id, _asked(prompt, template), best, worst)


def _asked(prompt: Prompt, template: str) -> str:
    if messages := prompt.metadata.get("messages"):
        return str(messages[-1]["content"])
    before, _, after = template.partition("{prompt}")
    return prompt.text.removeprefix(before).removesuffix(after)


def _answer(completion: Completion, score: float) -> Answer:
    return Answer(completion.transcript, score, completion.oldest_version, completion.finished)


def describe(sample: Sample, most: int) -> str:
    """Return a sample as three lines of at most about `most` characters of text each."""
    lines = [f"sample of update {sample.step}: {_short(sample.prompt, most)}"]
    for name, answer in (("best ", sample.best), ("worst", sample.worst)):
        cut = "" if answer.finished else " (without an end)"
        lines.append(f"  {name} {answer.score:.3g}{cut}: {_short(answer.text, most)}")
    return "\n".join(lines)


def in_markdown(sample: Sample) -> str:
    """Return a sample for TensorBoard, which shows Markdown: texts as they are, in code blocks."""
    parts = [_block(sample.prompt)]
    for name, answer in (("best", sample.best), ("worst", sample.worst)):
        parts.append(f"{name}, score {answer.score:.4g}, version {answer.version}\n\n{_block(answer.text)}")
    return "\n\n".join(parts)


def _block(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])


def _short(text: str, most: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 4].rstrip()} ..."


class SampleLog:
    """Writes the samples of a run. A resumed run goes on after `resume_from` updates: later lines are removed."""

    def __init__(
        self, directory: Path, config: SamplesConfig, missing_eos_score: MissingEos, metrics: MetricsWriter,
        *, say: Callable[[str], None], resume_from: int, template: str = "{prompt}",
    ) -> None:  # fmt: skip
        self._path, self._config, self._missing = directory / SAMPLES, config, missing_eos_score
        self._template = template
        self._metrics, self._say = metrics, say
        with self._writing():
            truncate_after(self._path, resume_from)

    def add(self, batch: Batch) -> None:
        """Keep a sample of the batch if one is due. Raises RunError if the file cannot be written."""
        every, step = self._config.every_updates, batch.update + 1
        if not every or not (step == 1 or step % every == 0):
            return
        sample = sample_of(batch, self._missing, self._template)
        if sample is None:
            return
        with self._writing(), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(sample)) + "\n")
        self._metrics.write_text(step, "samples", in_markdown(sample))
        if self._config.log:
            self._say(describe(sample, self._config.max_characters))

    def _writing(self) -> Any:
        return writing(self._path, "then use --resume, or set samples.every_updates to 0")


@dataclass(frozen=True, slots=True)
class BeforeAndAfter:
    """One answer each of the starting and of the trained policy to an evaluation prompt."""

    prompt_id: str
    prompt: str  # of a chat, its last message
    start: Answer
    final: Answer


def write_before_and_after(
    run: Path, judged: Sequence[Group], missing_eos_score: MissingEos, template: str = "{prompt}"
) -> None:
    """Write the first answer of both policies to each prompt of the final evaluation. Raises RunError.

    `judged` holds the policy's completions before as many of the starting policy's; if it is empty, nothing is written.
    """
    if not judged:
        return
    rows = []
    for group in judged:
        scores, half = effective_scores(group, missing_eos_score), len(group.completions) // 2
        final, start = (_answer(group.completions[number], scores[number]) for number in (0, half))
        prompt = group.lease.prompt
        rows.append(BeforeAndAfter(prompt.id, _asked(prompt, template), start, final))
    with writing(run / BEFORE_AND_AFTER, "then use --resume"):
        (run / BEFORE_AND_AFTER).parent.mkdir(exist_ok=True)
        atomic_write(run / BEFORE_AND_AFTER, "".join(f"{json.dumps(asdict(row))}\n" for row in rows))


def read_before_and_after(run: Path) -> tuple[list[BeforeAndAfter], int]:
    """Read what `write_before_and_after` wrote, and count its damaged lines.

    Nothing if the run has not ended, or has no evaluation. Raises OSError.
    """
    path = run / BEFORE_AND_AFTER
    return _parsed(path, _before_and_after) if path.is_file() else ([], 0)


def read_samples(run: Path) -> tuple[list[Sample], int]:
    """Read a run's samples, and count its damaged lines. Raises UsageError if the run has none."""
    path = run / SAMPLES
    if not path.is_file():
        found = "holds no samples" if (run / RECORDED).is_file() else "is no directory of a run"
        step = "give the directory of a run of `offbeat train` with samples.every_updates above 0"
        raise no_run(run, f"{found}: there is no {SAMPLES} in it", step)
    return _parsed(path, _sample)


def _parsed(path: Path, parse: Callable[[dict[str, Any]], Row]) -> tuple[list[Row], int]:
    """Return the rows of a file, and how many lines are none."""
    rows, damaged = read_json_lines(path)
    found: list[Row] = []
    for row in rows:
        try:
            found.append(parse(row))
        except (KeyError, TypeError):
            damaged += 1
    return found, damaged


def _read_answer(row: dict[str, Any]) -> Answer:
    """Raises TypeError for a value that is no answer."""
    answer = Answer(**row)
    if not isinstance(answer.text, str) or not isinstance(answer.score, int | float):
        raise TypeError
    return answer


def _before_and_after(row: dict[str, Any]) -> BeforeAndAfter:
    return BeforeAndAfter(row["prompt_id"], row["prompt"], _read_answer(row["start"]), _read_answer(row["final"]))


def _sample(row: dict[str, Any]) -> Sample:
    return Sample(**(row | {"best": _read_answer(row["best"]), "worst": _read_answer(row["worst"])}))
