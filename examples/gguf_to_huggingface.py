"""Write a GGUF model as a Hugging Face directory: bfloat16 weights, configuration, tokenizer, generation settings.

    python examples/gguf_to_huggingface.py MODEL.gguf DIRECTORY

`make pretrained` runs it on SmolLM2-135M-Instruct. It needs the packages gguf and accelerate besides Offbeat's own, so
it is no part of the product: the directory that it writes is a model like any other, to train and to sample from.
Quantised weights become plain numbers.
"""

import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging


def convert(source: Path, target: Path) -> None:
    """Write the model of the GGUF file `source` to the directory `target`, whole or not at all.

    Raises FileExistsError if `target` exists; OSError or ValueError if transformers cannot read the file.
    """
    if target.exists():
        raise FileExistsError(f"{target} exists; remove it, or name another directory")
    scratch = target.with_name(f".{target.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)  # left by a process that was killed
    scratch.mkdir(parents=True)
    try:
        _write(source, scratch)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write(source: Path, directory: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    read = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    # A model read from GGUF counts as quantised, and transformers does not save those: move its numbers to a plain one.
    settings = read.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(name, None)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model = type(read)(type(read.config)(**settings | ids))
    model.load_state_dict(read.state_dict())
    model.generation_config = GenerationConfig(**ids)  # the end of a turn ends an answer
    model.to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/gguf_to_huggingface.py MODEL.gguf DIRECTORY")
    logging.disable_progress_bar()
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except (OSError, ValueError) as error:
        sys.exit(f"{sys.argv[1]} was not converted: {error}")
