"""Random models of given sizes in their hub layout, or a real one, with a second one of the same sizes.

Must not import anything heavy before a model is made.
"""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_NAMES = [
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "tie_word_embeddings",
]
SIZES = {
    "tiny": (64, 2, 2, 1, 128, 96, False),
    "135m": (576, 30, 9, 3, 1536, 49152, True),
    "0.5b": (896, 24, 14, 2, 4864, 151936, True),
    "1b": (2048, 16, 32, 8, 8192, 128256, True),
    "3b": (3072, 28, 24, 8, 8192, 128256, True),
    "8b": (4096, 32, 32, 8, 14336, 128256, False),
}
"""Llamas with the dimensions of models that people have: SmolLM2, Qwen 2.5, and Llama 3."""
LOGIT_DEVIATION = 3.0
"""Deviation of a random model's logits, so that two of them differ by nats, as trained ones do."""
NOISE = 0.2
"""Change that makes a real model's second policy, as a part of each matrix's deviation."""


def make(directory: str, size: str | None = None, source: str | None = None) -> Iterator[dict[str, Any]]:
    """Make the policy and the second model below `directory`; yield their directories and the number of weights.

    `source`: a real model, which is used in place.
    """
    second = Path(directory) / "second"
    if source is None:
        assert size is not None
        policy = Path(directory) / "policy"
        for seed, target in enumerate((policy, second)):
            random_model(target, size, seed)
    else:
        from launch.doctor.model_facts import read_model

        policy = Path(source)
        read_model(source)  # names the file that cannot be read
        disturbed(policy, second)
    yield {"model": str(policy), "reference": str(second)}


def random_model(directory: Path, size: str, seed: int) -> None:
    """Save a random Llama in bfloat16 with a tokenizer of as many words as it has rows."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = dict(zip(_NAMES, SIZES[size], strict=True))
    torch.manual_seed(seed)
    config = LlamaConfig(
        **sizes,
        # Small models need larger weights, or their layers do nothing beside the embedding.
        initializer_range=min(0.1, 1.0 / math.sqrt(sizes["hidden_size"])),
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
        dtype="bfloat16",
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():
        model.get_output_embeddings().weight.normal_(0.0, LOGIT_DEVIATION / math.sqrt(sizes["hidden_size"]))
    model.save_pretrained(directory)
    _tokenizer(sizes["vocab_size"]).save_pretrained(directory)


def disturbed(source: Path, directory: Path) -> None:
    """Copy a model with noise in its matrices."""
    import torch
    from safetensors.torch import load_file, save_file

    from actors.generation.weights import is_tied

    shutil.copytree(source, directory, ignore=shutil.ignore_patterns("*.safetensors", "*.bin", "*.gguf"))
    torch.manual_seed(0)
    tied = is_tied(source)  # then a head in the files repeats the embedding, which is used
    for path in sorted(source.glob("*.safetensors")):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and tensor.ndim > 1 and not (tied and name == "lm_head.weight"):
                tensors[name] = tensor + NOISE * tensor.float().std().to(tensor.dtype) * torch.randn_like(tensor)
        save_file(tensors, directory / path.name, metadata={"format": "pt"})


def _tokenizer(words: int) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    table = {"<s>": 0, "</s>": 1, **{f"w{i}": i for i in range(2, words)}}
    tokenizer = Tokenizer(WordLevel(table, unk_token="<s>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
