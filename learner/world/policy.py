"""Supervised training of the embedded world's small policy, the starting model and frozen reference of runs.

A Llama of 1.3 million parameters learns the world's corpus from fresh examples and is written as a Hugging Face model
directory. Must not depend on preferences, Ray, vLLM or DeepSpeed.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from actors import world
from actors.errors import UsageError, writing
from actors.files import atomic_directory
from actors.host import usable_cores
from learner.world.exact import corpus_cross_entropy, exact_policy
from learner.world.quiet import silence

SETTINGS_FILE = world.POLICY_SETTINGS_FILE
RECIPE = 1
"""Incremented when a change below changes the trained model, so that models of older code are not reused."""
HEAD_SIZE = 32  # smallest head size of vLLM's CPU attention


@dataclass(frozen=True)
class PolicySize:
    """Dimensions of the small policy."""

    hidden: int = 192
    layers: int = 3
    heads: int = 6  # attention heads of 32 dimensions
    intermediate: int = 512


SIZES = {
    "small": PolicySize(hidden=96, heads=3, intermediate=256),
    "medium": PolicySize(),
    "large": PolicySize(hidden=384, heads=12, intermediate=1024),
}
"""Policies by `world.size`: 0.3, 1.3 and 5 million parameters."""
TINY = PolicySize(hidden=64, layers=2, heads=2, intermediate=128)
"""Size for tests: a twentieth of the parameters."""


@dataclass(frozen=True)
class SftReport:
    """Result of supervised training. Made by `train_sft`."""

    loss: float
    """Exact expected loss on the corpus (nats per response)."""
    corpus_entropy: float
    """Lowest possible loss; the difference is KL(corpus || policy)."""
    updates: int
    seconds: float
    """Time spent in optimizer steps; of the original training if the model was reused."""
    parameters: int
    reused: bool = False  # whether the directory already held the requested model


def train_sft(
    directory: Path,
    *,
    updates: int,
    seed: int,
    threads: int = 1,
    batch: int = 256,
    lr: float = 2e-3,
    size: PolicySize = PolicySize(),
) -> SftReport:
    """Train the policy on `updates` batches of the corpus and write it to `directory`, unless it is already there.

    AdamW with linear warm-up and decay of `lr`, float32. Every batch holds each prompt `batch / 16` times; only
    response tokens have a loss. The directory is written whole or not at all, with `sft.json`, whose settings identify
    the model for reuse; a model trained with other settings is replaced.

    Raises UsageError if `directory` holds anything else, or if `batch` is not a multiple of the 16 prompts.
    """
    if updates < 1 or batch < world.PROMPTS or batch % world.PROMPTS:
        raise UsageError(
            f"updates {updates} and batch {batch}: supervised training needs at least one update, and a batch that is "
            f"a multiple of the embedded world's {world.PROMPTS} prompts, such as {16 * world.PROMPTS}"
        )
    settings = {"recipe": RECIPE, "updates": updates, "seed": seed, "batch": batch, "lr": lr, "size": asdict(size)}
    done = _finished(directory, settings)
    if done is not None:
        return done
    threads_before = torch.get_num_threads()
    torch.set_num_threads(min(threads, usable_cores()))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build_policy(size)
            started = time.perf_counter()
            _train(model, updates=updates, batch=batch, lr=lr, rng=np.random.default_rng(seed))
            seconds = time.perf_counter() - started
            loss = corpus_cross_entropy(exact_policy(model.eval()))
    finally:
        torch.set_num_threads(threads_before)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    report = SftReport(loss, world.corpus_entropy(), updates, seconds, parameters)
    _write(directory, model, settings, report)
    return report


def build_policy(size: PolicySize = PolicySize()) -> LlamaForCausalLM:
    """Build a Llama over the world's 18 tokens with random weights, float32 and tied embeddings."""
    silence()
    config = LlamaConfig(
        vocab_size=len(world.VOCABULARY),
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        head_dim=HEAD_SIZE,
        intermediate_size=size.intermediate,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=world.PAD,
        bos_token_id=world.BOS,
        eos_token_id=world.EOS,
        attn_implementation="sdpa",
        dtype="float32",
    )
    return LlamaForCausalLM(config)


def _train(model: LlamaForCausalLM, *, updates: int, batch: int, lr: float, rng: np.random.Generator) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0, foreach=True)
    warmup = max(1, updates // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda update: min((update + 1) / warmup, (updates - update) / max(1, updates - warmup))
    )
    every_prompt = np.arange(world.PROMPTS).repeat(batch // world.PROMPTS)
    model.train()
    for _ in range(updates):
        responses = torch.from_numpy(world.corpus_responses(every_prompt, rng))
        loss = packed_loss(model, responses.view(world.PROMPTS, -1, world.MAX_NEW_TOKENS))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def packed_loss(model: LlamaForCausalLM, responses: torch.Tensor) -> torch.Tensor:
    """Compute the mean cross-entropy (nats per token) of the responses [16, k, 4] to the 16 prompts.

    The k responses to a prompt follow it in one row, each attending only to the prompt and itself, at its usual
    positions: less than half of the work of k rows that repeat the prompt. The last token of a response is only a
    target. Padding needs no mask, because no real token attends to it.
    """
    prompts, k, _ = responses.shape
    prompt = torch.tensor([world.prompt_token_ids(index) for index in range(prompts)])
    input_ids = torch.cat([prompt, responses[:, :, :-1].reshape(prompts, -1)], dim=1)
    start, width = prompt.shape[1], world.MAX_NEW_TOKENS - 1
    block = torch.cat([torch.full((start,), -1), torch.arange(k).repeat_interleave(width)])
    visible = ((block[:, None] == block) | (block == -1)).tril()
    positions = torch.cat([torch.arange(start), torch.arange(start, start + width).repeat(k)])
    logits = model(
        input_ids=input_ids, attention_mask=visible[None, None], position_ids=positions[None], use_cache=False
    ).logits
    first = logits[:, None, start - 1 : start].expand(-1, k, -1, -1)
    later = logits[:, start:].unflatten(1, (k, width))
    predictions = torch.cat([first, later], dim=2)
    return torch.nn.functional.cross_entropy(predictions.flatten(0, 2), responses.flatten(), ignore_index=world.PAD)


def _finished(directory: Path, settings: dict[str, object]) -> SftReport | None:
    """Return the report of an earlier training with equal settings in `directory`; None if there is none."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return None
    try:
        written = json.loads((directory / SETTINGS_FILE).read_text())
    except (OSError, ValueError):
        raise UsageError(
            f"{str(directory)!r} exists and holds no model of the embedded world ({SETTINGS_FILE} is missing or "
            "unreadable); it was not changed: give a new directory, or remove this one"
        ) from None
    if written["settings"] != settings:
        return None
    return SftReport(**{**written["report"], "reused": True})


def _write(directory: Path, model: LlamaForCausalLM, settings: dict[str, object], report: SftReport) -> None:
    """Write the model, whole or not at all."""
    with writing(directory, "then use --resume"), atomic_directory(directory) as fresh:
        silence()
        model.save_pretrained(fresh)
        world.tokenizer().save_pretrained(fresh)
        GenerationConfig(
            bos_token_id=world.BOS, eos_token_id=world.EOS, pad_token_id=world.PAD, do_sample=True
        ).save_pretrained(fresh)
        document = {"settings": settings, "report": asdict(report)}
        (fresh / SETTINGS_FILE).write_text(json.dumps(document, indent=2) + "\n")
