"""`offbeat evaluate`: sample a model's answers to prompts, judge them, and measure a selection among them.

Samples with the run's own engines and asks the run's own judge, both as Ray actors; a verifier then scores in this
process. User errors are checked before an actor starts.
"""

import asyncio
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from actors.data.prompts import PromptSource
from actors.data.text import load_tokenizer
from actors.errors import RunError, UsageError
from actors.hub import resolve
from actors.judges.config import VerifierJudgeConfig
from actors.records import Failure, Group, Lease, Prompt
from actors.replay_buffer.pairing import effective_scores
from launch.cluster import wiring
from launch.evaluate.best_of import Candidates, Report, render, report
from launch.evaluate.solutions import Solution, pairs_of, write_jsonl
from launch.run.plugins import plugin_of
from launch.run.preflight import check_model
from launch.run.protocols import GeneratorDeadError, GeneratorPort, GeneratorUnavailableError, JudgePort
from launch.settings.run import RunConfig
from learner.backend.models import DPO_FILE
from learner.config import PairLossConfig

COLLECT_SECONDS = 2.0
Rank = Literal["likelihood", "reward"]


@dataclass(frozen=True, slots=True)
class Request:
    """Options of the command line that are not settings."""

    verifiers: tuple[str, ...] = ()
    """Model directories or hub names; each ranks the answers."""
    rank: Rank = "likelihood"
    prompts: int | None = None
    """Number of prompts; None: `evaluation.prompts`, or all if there are fewer."""
    threshold: float = 1.0  # lowest score of a correct answer
    max_pairs: int = 8
    output: Path | None = None
    solutions: Path | None = None
    pairs: Path | None = None


def run_evaluation(config: RunConfig, request: Request) -> int:
    """Sample, judge, select and report; return the exit code 0.

    Raises UsageError before anything is sampled, RunError if a prompt cannot be answered or judged or the disk refuses.
    """
    console = Console(stderr=True, highlight=False)
    config = _for_sampling(config)
    verifiers = [find_verifier(path, request.rank) for path in request.verifiers]
    check_model(config, plugin_of(config))
    prompts = _prompts(config, request.prompts)
    count = config.sampling.completions_per_prompt
    console.print(f"offbeat: sampling {count} answers to each of {len(prompts)} prompts", soft_wrap=True)
    with wiring.ray_session(config.cluster):
        wiring.check_sampling_resources(config)
        generators = wiring.start_generators(config, config.model.path, config.model.path)
        groups = asyncio.run(_sample_and_judge(generators, wiring.start_judges(config, config.model.path)[0], prompts))
    scores = [verifier.scores(groups, config) for verifier in verifiers]
    solutions, candidates = judged(groups, scores, config, request.threshold)
    results = report(candidates)
    print(render(results, [f"{path}, {request.rank}" for path in request.verifiers]))
    _write(results, solutions, config, request)
    return 0


def _for_sampling(config: RunConfig) -> RunConfig:
    """Return `config` for sampling: one judge, and an engine without a second model."""
    plugin = plugin_of(config)
    if not plugin.check_model(config):
        raise UsageError(f"model.path is {config.model.path}, which a run makes first; name a model with --model DIR")
    learner = config.learner.model_copy(update={"loss": PairLossConfig()})
    model = config.model.model_copy(update={"reference": None})
    judging = config.judging.model_copy(update={"count": 1})
    return plugin.resolve(config.model_copy(update={"learner": learner, "model": model, "judging": judging}))


def _prompts(config: RunConfig, wanted: int | None) -> list[Prompt]:
    source = PromptSource(config.prompts, load_tokenizer(config.model.tokenizer or str(resolve(config.model.path))))
    if wanted is not None and wanted > len(source):
        raise UsageError(f"--prompts {wanted} exceeds the {len(source)} prompts of prompts.source; lower it")
    count = min(config.evaluation.prompts, len(source)) if wanted is None else wanted
    if count < 1:
        raise UsageError("0 prompts requested; set --prompts or evaluation.prompts to 1 or more")
    return source.evaluation_prompts(count)


# ---------------------------------------------------------------- sampling


async def _sample_and_judge(
    generators: Sequence[GeneratorPort], judge: JudgePort, prompts: Sequence[Prompt]
) -> list[Group]:
    await judge.ready()
    groups = await sample(generators, prompts)
    answers = await judge.judge(groups)
    failed = [answer.reason for answer in answers if isinstance(answer, Failure)]
    if failed:
        raise RunError(f"{len(failed)} of {len(answers)} prompts could not be judged; the first: {failed[0]}")
    return [answer for answer in answers if isinstance(answer, Group)]


async def sample(generators: Sequence[GeneratorPort], prompts: Sequence[Prompt]) -> list[Group]:
    """Sample one group for each prompt from the starting weights, with the prompts dealt out to the generators.

    Returns groups in the order of `prompts`. A restarted generator gets its open prompts again. Raises RunError if a
    generator dies for good or a prompt cannot be answered.
    """
    leases = [Lease(index, 0, prompt, 0, math.inf, draw="policy") for index, prompt in enumerate(prompts)]
    shares = [leases[number :: len(generators)] for number in range(len(generators))]
    served = await asyncio.gather(*[_serve(port, share) for port, share in zip(generators, shares, strict=True)])
    groups = {group.lease.index: group for part in served for group in part}
    return [groups[index] for index in range(len(prompts))]


async def _serve(port: GeneratorPort, leases: Sequence[Lease]) -> list[Group]:
    waiting = {lease.index: lease for lease in leases}
    groups: list[Group] = []
    while waiting:
        try:
            await port.ready()
            await port.submit(list(waiting.values()))
            while waiting:
                for item in await port.collect(COLLECT_SECONDS):
                    index = item.lease_index if isinstance(item, Failure) else item.lease.index
                    lease = waiting.pop(index, None)  # None: answered before and after a broken connection
                    if isinstance(item, Group) and lease is not None:
                        groups.append(item)
                    elif isinstance(item, Failure) and lease is not None:
                        raise RunError(f"prompt '{lease.prompt.id}' could not be generated: {item.reason}")
        except GeneratorUnavailableError:
            continue  # Ray restarts it, at most generators.max_restarts times
        except GeneratorDeadError as error:
            raise RunError(f"{error}; see its log, then run again") from error
    return groups


# ---------------------------------------------------------------- selecting


@dataclass(frozen=True, slots=True)
class Verifier:
    """A model that scores answers: by log-likelihood or, with `reference`, by implicit reward."""

    directory: Path
    reference: Path | None = None
    beta: float = 1.0

    def scores(self, groups: Sequence[Group], config: RunConfig) -> list[tuple[float, ...]]:
        """Score every completion: log V(y|x) (nats; Hosseini et al. 2024, section 3.1), or with a reference
        beta (log V(y|x) - log mu(y|x)) (Rafailov et al. 2023, eq. 5). Raises UsageError as `PerplexityModel` does."""
        values = _sequence_logprobs(self.directory, groups, config)
        if self.reference is not None:
            ours, theirs = values, _sequence_logprobs(self.reference, groups, config)
            values = [self.beta * (mine - other) for mine, other in zip(ours, theirs, strict=True)]
        rest = iter(values)
        return [tuple(next(rest) for _ in group.completions) for group in groups]


def find_verifier(path: str, rank: Rank) -> Verifier:
    """Return the verifier at a directory or hub name. Raises UsageError if it, or its reference, is not found."""
    directory = resolve(path)
    if rank == "likelihood":
        return Verifier(directory)
    record = directory / DPO_FILE
    try:
        recorded: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        return Verifier(directory, resolve(recorded["reference"]), float(recorded["beta"]))
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"--rank reward needs the verifier's reference and beta, and {record} does not hold them ({error!r}); "
            "give the final/ directory of `offbeat dpo`, or --rank likelihood"
        ) from error


def _sequence_logprobs(directory: Path, groups: Sequence[Group], config: RunConfig) -> list[float]:
    """Compute the log-prob (nats, temperature 1) of each completion, summed over its tokens."""
    import torch

    from learner.stages.perplexity import PerplexityModel

    model = PerplexityModel(
        directory,
        dtype=config.generators.dtype,
        device="cuda" if torch.cuda.is_available() else "cpu",
        micro_batch_tokens=config.learner.micro_batch_tokens,
    )
    sequences = [
        (group.lease.prompt.token_ids, completion.token_ids) for group in groups for completion in group.completions
    ]
    means = model.log_perplexities(sequences)
    return [-float(mean) * len(response) for mean, (_, response) in zip(means, sequences, strict=True)]


def judged(
    groups: Sequence[Group], scores: Sequence[Sequence[tuple[float, ...]]], config: RunConfig, threshold: float
) -> tuple[list[Solution], list[Candidates]]:
    """Convert judged groups to solutions for files and candidates for the report; `scores` has one list a verifier."""
    answer_of = _final_answers(config)
    solutions: list[Solution] = []
    candidates: list[Candidates] = []
    for number, group in enumerate(groups):
        values = effective_scores(group, config.judging.missing_eos_score)
        correct = tuple(value >= threshold for value in values)
        own = tuple(each[number] for each in scores)
        answers = None if answer_of is None else tuple(answer_of(each.text) for each in group.completions)
        candidates.append(Candidates(correct, answers, own))
        prompt = group.lease.prompt
        given = prompt.metadata.get("messages", prompt.text)
        for index, each in enumerate(group.completions):
            judgement = (correct[index], values[index], each.finished, tuple(score[index] for score in own))
            solutions.append(Solution(prompt.id, given, each.text, *judgement))
    return solutions, candidates


def _final_answers(config: RunConfig) -> Any:
    """Return a function from a text to its final answer; None if the judge extracts none."""
    if not isinstance(config.judging.judge, VerifierJudgeConfig):
        return None
    from actors.judges.verifier import VerifierJudge, normalise, number

    judge = VerifierJudge(config.judging.judge)

    def answer(text: str) -> Any:
        found = judge.final_answer(text)
        plain = "" if found is None else normalise(found)
        value = number(plain)
        return (plain or None) if value is None else value

    return answer


def _write(results: Report, solutions: Sequence[Solution], config: RunConfig, request: Request) -> None:
    if request.solutions is not None:
        write_jsonl(request.solutions, [asdict(solution) for solution in solutions])
    if request.pairs is not None:
        rows = pairs_of(solutions, request.max_pairs, config.seed)
        write_jsonl(request.pairs, rows)
        print(f"{len(rows)} pairs in {request.pairs}")
    if request.output is not None:
        asked = {"model": config.model.path, "verifiers": request.verifiers, "rank": request.rank}
        write_jsonl(request.output, [asked | {"threshold": request.threshold} | asdict(results)])
