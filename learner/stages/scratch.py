"""A small language model from scratch: a byte-level BPE tokenizer trained on texts, and a Llama with random weights.

For small data sets and tests. Must not depend on the source of the texts or on training.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from actors.files import atomic_directory
from actors.hub import quiet
from learner.stages.config import ScratchConfig

EOS, PAD = "<|end|>", "<|pad|>"


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """Train a byte-level BPE tokenizer (Sennrich et al. 2016) of at most `vocabulary` tokens on `texts`.

    Each digit is one token, so that numbers are written digit by digit. Encoding is lossless. The same texts give the
    same tokenizer.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD)


def make_model(directory: str | Path, texts: Iterable[str], config: ScratchConfig) -> int:
    """Write tokenizer and model as a Hugging Face directory, whole or not at all; return the number of parameters.

    Raises OSError if the disk refuses.
    """
    tokenizer = train_tokenizer(texts, config.vocabulary)
    hidden = config.heads * config.head_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=hidden,
                intermediate_size=hidden * 3,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.heads,
                max_position_embeddings=config.max_tokens,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    with atomic_directory(Path(directory)) as stage, quiet():
        model.save_pretrained(stage)
        tokenizer.save_pretrained(stage)
    return model.num_parameters()
