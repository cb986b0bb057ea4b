"""Small tokenizers with chat templates in the public styles, each with a whole conversation written by hand.

A style's end of turn often differs from the tokenizer's end-of-sequence, as in the models that made it known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Style:
    """A template; what it writes for the user's `red north` before the answer, and the answer `blue gold` as told."""

    template: str
    prompt: str
    answer: str  # with the end of turn that counts
    end: str  # the token that ends an answer
    specials: tuple[str, ...]
    after: str = ""  # what the template writes after the end
    eos: str = "<eos>"
    bos: str = "<bos>"
    metaspace: bool = False

    def tokenizer(self) -> Any:
        return style_tokenizer(self)


_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
_LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
    " + m['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
_GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_QWEN3 = (
    "{% for m in messages %}{% if m['role'] != 'assistant' %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% else %}"
    "{% set content = m['content'] %}{% set thought = m['reasoning_content'] or '' %}"
    "{% if '</think>' in content %}{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}{{ '<|im_start|>assistant\n' }}"
    "{% if loop.last %}{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}{% endif %}"
    "{{ content.lstrip('\n') + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
_R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}"
    "{% elif m['role'] == 'assistant' %}{% set content = m['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}{{ '<|Assistant|>' + content + eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
_ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
_PHI = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
_IM, _HEADER = ("<|im_start|>", "<|im_end|>"), ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_IM_PROMPT = "<|im_start|>user\nred north<|im_end|>\n<|im_start|>assistant\n"
_PHI_TOKENS = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")

STYLES = {
    "chatml": Style(_CHATML, _IM_PROMPT, "blue gold<|im_end|>", "<|im_end|>", _IM, "\n"),
    "llama2": Style(
        _LLAMA2, "<bos>[INST] red north [/INST]", " blue gold <eos>", "<eos>", (), metaspace=True
    ),
    "llama3": Style(
        _LLAMA3,
        "<bos><|start_header_id|>user<|end_header_id|>\n\nred north<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "blue gold<|eot_id|>",
        "<|eot_id|>",
        _HEADER,
    ),
    "mistral": Style(
        _MISTRAL, "<bos>[INST] red north [/INST]", " blue gold<eos>", "<eos>", ("[INST]", "[/INST]"), metaspace=True
    ),
    "gemma": Style(
        _GEMMA,
        "<bos><start_of_turn>user\nred north<end_of_turn>\n<start_of_turn>model\n",
        "blue gold<end_of_turn>",
        "<end_of_turn>",
        ("<start_of_turn>", "<end_of_turn>"),
        "\n",
        metaspace=True,
    ),
    "qwen3": Style(
        _QWEN3,
        _IM_PROMPT,
        "<think>\n\n</think>\n\nblue gold<|im_end|>",
        "<|im_end|>",
        (*_IM, "<think>", "</think>"),
        "\n",
    ),
    "r1": Style(
        _R1,
        "<bos><|User|>red north<|Assistant|><think>\n",
        "\n</think>\n\nblue gold<eos>",
        "<eos>",
        ("<|User|>", "<|Assistant|>", "<think>", "</think>"),
    ),
    "zephyr": Style(
        _ZEPHYR, "<|user|>\nred north<eos>\n<|assistant|>\n", "blue gold<eos>", "<eos>", (), "\n", metaspace=True
    ),
    "phi": Style(
        _PHI, "<|user|>\nred north<|end|>\n<|assistant|>\n", "blue gold<|end|>", "<|end|>", _PHI_TOKENS, "\n<eos>"
    ),
}  # fmt: skip


def style_tokenizer(style: Style) -> Any:
    """A byte-level tokenizer, or one like those of sentencepiece, which puts a space before a text of its own."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    specials = list(dict.fromkeys(["<unk>", style.bos, style.eos, *style.specials]))
    if style.metaspace:
        alphabet = ["▁", *(chr(code) for code in range(10, 127))]
    else:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*specials, *alphabet, "re", "red", "bl", "go"])}
    merges = [("r", "e"), ("re", "d"), ("b", "l"), ("g", "o")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    if style.metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    pair = [(style.bos, vocabulary[style.bos])]
    tokenizer.post_processor = TemplateProcessing(single=f"{style.bos} $A", special_tokens=pair)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token=style.bos, eos_token=style.eos
    )
    made.chat_template = style.template
    return made
