"""Random models of a few thousand weights, saved with a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def tiny_llama(directory: Path, *, seed: int, tied: bool = False, vocab_size: int = 96) -> Any:
    """Saves a random two-layer Llama (hidden 64, float32) with a tokenizer of `vocab_size` words, and returns it.

    Its weights are large for its size, so that its distributions are peaked and two of them differ by nats.
    """
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,  # vLLM's CPU attention has no heads below 32 dimensions
        num_key_value_heads=1,
        max_position_embeddings=512,
        initializer_range=0.1,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(directory)
    words = {"<s>": 0, "</s>": 1, **{f"w{i}": i for i in range(2, vocab_size)}}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<s>")), bos_token="<s>", eos_token="</s>"
    )
    tokenizer.save_pretrained(directory)
    return model


def tiny_preference_model(
    directory: Path, kind: Any, *, skew_blocks: int = 0, temperature: float = 1.0, positions: int = 64
) -> Any:
    """Saves a random preference model over the embedded world's words, with its tokenizer, and returns it.

    Its weights are so large that its preferences are far from even.
    """
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from actors import world
    from actors.judges.models.preference_network import PreferenceForm, write_form

    form = PreferenceForm(kind, world.EOS, skew_blocks, temperature)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(world.VOCABULARY),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=positions,
        num_labels=form.outputs,
        pad_token_id=world.PAD,
        bos_token_id=world.BOS,
        eos_token_id=world.EOS,
        initializer_range=0.5,
    )
    model = LlamaForSequenceClassification(config).eval()
    model.save_pretrained(directory)
    world.tokenizer().save_pretrained(directory)
    write_form(directory, form)
    return model


def with_adapter(directory: Path, lora: Any, *, seed: int, spread: float = 0.1) -> Any:
    """The model of a directory with an adapter of random numbers in peft's own layers, A and B alike.

    `spread`: their standard deviation; with 0 the adapter changes nothing.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from actors.adapters import peft_form

    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    peft_form.adapt(model, lora)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in peft_form.tensors(model).values():
            parameter.copy_(torch.randn(parameter.shape) * spread)
    return model
