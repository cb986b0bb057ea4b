"""A real pretrained chat model through the whole loop: the preset `chat` as a user starts it, two updates at S = 0."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from launch.output.journal_reader import JournalReader
from tests.integration.runs import ROOT, finish, leaving_nothing, start, summary_of
from tests.processes import Marked

MODEL = ROOT / "models" / "smollm2-135m-instruct"
GAP = {"float32": (2e-4, 2e-5), "bfloat16": (0.6, 0.15), "bfloat16-float32": (0.6, 0.15)}
"""Largest and mean log-prob difference, in nats, between engine and learner on a token; by dtype, and that of the head
if it has another."""
VARIANTS = ["float32", *(pytest.param(name, marks=pytest.mark.long) for name in ("bfloat16", "bfloat16-float32"))]
TEMPERATURE = 0.7
QUESTIONS = (
    "What is the capital of France?",
    "What is the capital of Italy? Answer in one word.",
    "Say hello in three words.",
    "Is the sea salty? Answer yes or no.",
)

pytestmark = [
    pytest.mark.pretrained,
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("shared memory"),
    pytest.mark.skipif(
        not (MODEL / "config.json").is_file(), reason="no pretrained model; `make pretrained` brings it"
    ),
]


@dataclass(frozen=True)
class Run:
    """A finished run and the dtypes of its engine and learner: one of `GAP`."""

    directory: Path
    name: str

    @property
    def dtype(self) -> str:
        return self.name.partition("-")[0]

    @property
    def head_dtype(self) -> str:
        return self.name.partition("-")[2] or self.dtype


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Path]:
    """Two updates of the preset, on-policy, in each dtype asked for. Side by side: most of their time is starting."""
    items = [item for item in request.session.items if item.path == request.path and isinstance(item, pytest.Function)]
    names = dict.fromkeys(item.callspec.params["run"] for item in items)
    directory, processes = tmp_path_factory.mktemp("chat"), Marked()
    rows = [{"messages": [{"role": "user", "content": text}], "checks": "words=1-8; lowercase"} for text in QUESTIONS]
    (directory / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "model.path": MODEL,
        "prompts.source": directory / "prompts.jsonl",
        "updates": 2,
        "replay.max_staleness": 0,
        "replay.prompts_per_update": len(QUESTIONS) // 2,
        "sampling.completions_per_prompt": 4,
        "sampling.max_new_tokens": 20,
        "sampling.temperature": TEMPERATURE,
        "evaluation.prompts": 0,
        "cluster": "{address: local, num_cpus: 2, object_store_mib: 128}",
    }
    arguments = ["train", "chat", *(f"{key}={value}" for key, value in settings.items())]
    try:
        with leaving_nothing(processes):
            started = []
            for name in names:
                dtype, _, head = name.partition("-")
                own = (f"generators.dtype={dtype}", f"learner.dtype={dtype}", f"output={directory / name}")
                started.append(start(*arguments, *own, f"model.head_dtype={head or 'model'}"))
            for process in started:
                finish(process)
    finally:
        processes.end()
    return {name: directory / name for name in names}


@pytest.fixture(params=VARIANTS)
def run(request: pytest.FixtureRequest, runs: dict[str, Path]) -> Run:
    return Run(runs[request.param], request.param)


def _groups(run: Run) -> list[Any]:
    return [group for batch in JournalReader(run.directory / "journal").batches(0) for group in batch.groups]


def test_every_token_of_a_pretrained_model_is_on_policy(run: Run) -> None:
    summary = summary_of(run.directory)
    assert (summary["status"], summary["updates"], summary["staleness"]["max"]) == ("completed", 2, 0)
    largest, mean = GAP[run.name]
    assert 0 < summary["log_ratio_max"] < largest
    metrics = [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()]
    assert [row["staleness_max"] for row in metrics] == [0, 0]
    assert all(row["log_ratio_mean"] < mean for row in metrics)


def test_the_chat_template_is_applied_once_and_the_end_of_a_turn_ends_an_answer(run: Run) -> None:
    """SmolLM2's first token, <|im_start|>, is also its beginning of sequence: a tokenizer that adds one doubles it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert tokenizer.convert_ids_to_tokens([bos, eos]) == ["<|im_start|>", "<|im_end|>"]
    groups = _groups(run)
    assert {group.lease.prompt.text.count(text) for group in groups for text in QUESTIONS} == {0, 1}
    for prompt in (group.lease.prompt for group in groups):
        assert tokenizer.decode(prompt.token_ids) == prompt.text
        assert prompt.text.startswith("<|im_start|>system\n")
        assert prompt.text.endswith("<|im_end|>\n<|im_start|>assistant\n")
        assert [prompt.token_ids.count(token) for token in (bos, eos)] == [3, 2], "system, user and the answer's start"
    completions = [completion for group in groups for completion in group.completions]
    assert len(completions) == 16
    assert all((eos in completion.token_ids) == completion.finished for completion in completions)
    assert all(
        completion.token_ids.index(eos) == len(completion.token_ids) - 1
        for completion in completions
        if completion.finished
    )
    assert sum(completion.finished for completion in completions) >= 3, "about half of them, in so few tokens"
    assert not any("<|im" in completion.text for completion in completions)


def test_the_engine_s_log_probs_are_those_of_the_model_in_transformers(run: Run) -> None:
    """Not by the learner's path: one sequence at a time, before the first update."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=getattr(torch, run.dtype))
    for group in _groups(run)[:2]:
        for completion in group.completions:
            ids = torch.tensor([[*group.lease.prompt.token_ids, *completion.token_ids]])
            with torch.no_grad():
                hidden = model.model(ids).last_hidden_state[0, len(group.lease.prompt.token_ids) - 1 : -1]
                head = getattr(torch, run.head_dtype)
                logits = (hidden.to(head) @ model.lm_head.weight.to(head).T).float() / TEMPERATURE
            scored = logits.log_softmax(-1).gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
            assert set(completion.versions) == {0}
            assert scored.tolist() == pytest.approx(completion.logprobs, abs=GAP[run.name][0])


def test_the_trained_model_answers_in_transformers(run: Run) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run.directory / "final")
    model = AutoModelForCausalLM.from_pretrained(run.directory / "final", dtype=torch.float32)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, do_sample=False, max_new_tokens=16)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id, "its own generation settings end the answer"
