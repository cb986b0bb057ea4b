"""Change of a model's log-probs if linear layers are rounded to fp8, beside bfloat16: transformers on CPU.

    python -m benchmarks.fp8 --model MODEL_DIR [--output benchmarks/results/fp8.json]

The model samples completions of its own at temperature 1 in float32. Their tokens are scored in float32, in bfloat16,
and in bfloat16 with the weights of all linear layers but the output projection rounded to e4m3, with one scale per
layer and with one per output channel. Activations are not rounded, so an engine that rounds both is further off.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import record
from launch.output.summary import package_versions

QUESTIONS = (
    "Tell me about rivers.",
    "Write a short story about a cat.",
    "How do I cook rice?",
    "Explain gravity to a child.",
    "List three fruits.",
    "What is a prime number?",
)
LARGEST = torch.finfo(torch.float8_e4m3fn).max


def completions(model: Any, tokenizer: Any, new_tokens: int) -> list[tuple[int, torch.Tensor]]:
    """Return the length of each prompt, and its tokens with those of its completion."""
    torch.manual_seed(0)
    found = []
    for question in QUESTIONS:
        chat = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        whole = model.generate(
            **prompt, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=new_tokens, pad_token_id=0
        )
        found.append((prompt["input_ids"].shape[1], whole[0]))
    return found


@torch.no_grad()
def scores(model: Any, sequences: list[tuple[int, torch.Tensor]]) -> torch.Tensor:
    """Log-probs of all completions' tokens, in one row."""
    found = []
    for length, tokens in sequences:
        rows = model(tokens[None]).logits[0].float().log_softmax(-1)[length - 1 : -1]
        found.append(rows.gather(1, tokens[length:, None])[:, 0])
    return torch.cat(found)


def round_to_fp8(model: Any, *, per_channel: bool) -> Any:
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":
            weight = layer.weight.data.float()
            largest = weight.abs().amax(1, keepdim=True) if per_channel else weight.abs().max()
            scale = largest / LARGEST
            layer.weight.data = ((weight / scale).to(torch.float8_e4m3fn).float() * scale).to(layer.weight.dtype)
    return model


def apart(a: torch.Tensor, b: torch.Tensor) -> dict[str, float]:
    """Differences in nats."""
    difference = a - b
    figures = {"mean": difference.abs().mean(), "largest": difference.abs().max(), "signed": difference.mean()}
    return {name: round(value.item(), 4) for name, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/fp8.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    def load(dtype: torch.dtype) -> Any:
        return AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype).eval()

    exact = load(torch.float32)
    sequences = completions(exact, AutoTokenizer.from_pretrained(arguments.model), arguments.new_tokens)
    rounded = scores(load(torch.bfloat16), sequences)
    nats = {"bfloat16 from float32": apart(rounded, scores(exact, sequences))}
    for name, per_channel in (("one scale per layer", False), ("one scale per channel", True)):
        model = round_to_fp8(load(torch.bfloat16), per_channel=per_channel)
        nats[f"fp8 from bfloat16, {name}"] = apart(scores(model, sequences), rounded)
    result = {"nats": nats, "tokens": len(rounded), "machine": record.machine(), "versions": package_versions()}
    record.write(arguments.output, result)
    print(json.dumps(nats, indent=1))


if __name__ == "__main__":
    main()
