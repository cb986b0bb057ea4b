"""Small random models of many architectures, saved in the layout that their checkpoints on the hub have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WORDS = 96

_SIZES = {
    "vocab_size": WORDS,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,  # of 32 dimensions, the fewest that vLLM's CPU attention has
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_WITHOUT_GROUPS = {name: value for name, value in _SIZES.items() if name not in ("num_key_value_heads", "head_dim")}
_GPT2 = {"vocab_size": WORDS, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 256, "initializer_range": 0.1}
_GPT2 |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-1": ("llama", _SIZES | {"num_key_value_heads": 2}),
    "llama-2": ("llama", _SIZES),
    "llama-3": ("llama", _SIZES | {"rope_parameters": _LLAMA3_ROPE, "eos_token_id": [1, 5, 7]}),
    "llama-tied": ("llama", _SIZES | {"tie_word_embeddings": True}),
    "mistral": ("mistral", _SIZES),
    "qwen-2": ("qwen2", {n: v for n, v in _SIZES.items() if n != "head_dim"} | {"tie_word_embeddings": True}),
    "qwen-3": ("qwen3", _SIZES),
    "qwen-3-moe": ("qwen3_moe", _SIZES | _EXPERTS),
    "gemma-2": ("gemma2", _SIZES | {"query_pre_attn_scalar": 32, "sliding_window": 64}),
    "gemma-3": ("gemma3_text", _SIZES | {"query_pre_attn_scalar": 32, "sliding_window": 64}),
    "gpt-2": ("gpt2", _GPT2),
    "gpt-neox": ("gpt_neox", _WITHOUT_GROUPS),
    "phi-3": ("phi3", {n: v for n, v in _SIZES.items() if n != "head_dim"}),
    "olmo-2": ("olmo2", {n: v for n, v in _SIZES.items() if n != "head_dim"}),
    "granite": ("granite", _SIZES | {"logits_scaling": 4.0, "embedding_multiplier": 2.0}),
    "cohere": ("cohere", {n: v for n, v in _SIZES.items() if n != "head_dim"} | {"logit_scale": 0.5}),
}
"""By name: transformers' model type, and the fields of its configuration."""


def long_but(*names: str) -> list[Any]:
    """All of them as a test's parameters: those not named are marked `long`."""
    return [name if name in names else pytest.param(name, marks=pytest.mark.long) for name in ARCHITECTURES]


def architecture(directory: Path, name: str, *, seed: int = 0) -> Any:
    """Saves a random model (float32) with a tokenizer of `WORDS` words, in its hub layout, and returns it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, sizes = ARCHITECTURES[name]
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too, which start as 1 and 0
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(directory, max_shard_size="100KB" if name == "llama-3" else "1GB")
    _tokenizer().save_pretrained(directory)
    if name in _LAYOUTS:
        _LAYOUTS[name](directory)
    return model


def _tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {"<s>": 0, "</s>": 1, **{f"w{i}": i for i in range(2, WORDS)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<s>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def rewrite(directory: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Changes the tensors of a directory with one file of weights."""
    from safetensors.torch import load_file, save_file

    path = directory / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def _value_head(directory: Path) -> None:
    """Policies of some training libraries keep the value head that they were trained with."""
    import torch

    rewrite(directory, lambda tensors: tensors | {"v_head.summary.weight": torch.ones(1, 64)})


def _old_llama(directory: Path) -> None:
    """Exports of 2023 hold each layer's rotary frequencies."""
    import torch

    frequencies = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(16) for layer in range(2)}
    rewrite(directory, lambda tensors: tensors | frequencies)


def _repeated_head(directory: Path) -> None:
    rewrite(directory, lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].clone()})


def _gpt2_hub(directory: Path) -> None:
    """The hub's GPT-2 has no prefix, and keeps its causal masks."""
    import torch

    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 256, 256) for layer in range(2)}
    rewrite(directory, lambda t: {n.removeprefix("transformer."): v for n, v in t.items()} | masks)


def _neox_hub(directory: Path) -> None:
    """Pythia's files hold causal masks and rotary frequencies."""
    import torch

    extra = {}
    for layer in range(2):
        extra |= {f"gpt_neox.layers.{layer}.attention.bias": torch.ones(1, 1, 256, 256, dtype=torch.bool)}
        extra |= {f"gpt_neox.layers.{layer}.attention.masked_bias": torch.tensor(-1e9)}
        extra |= {f"gpt_neox.layers.{layer}.attention.rotary_emb.inv_freq": torch.ones(4)}
    rewrite(directory, lambda tensors: tensors | extra)


_LAYOUTS = {
    "llama-1": _old_llama,
    "mistral": _value_head,
    "llama-tied": _repeated_head,
    "gpt-2": _gpt2_hub,
    "gpt-neox": _neox_hub,
}
