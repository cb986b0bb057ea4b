"""Adapters of all linear layers in every architecture: the engine computes what peft does, or says that it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.adapters import peft_form
from actors.adapters.config import LoraConfig
from actors.errors import UsageError
from actors.generation.config import GeneratorConfig, SamplingConfig
from actors.generation.engine import Engine
from actors.records import Canary
from learner.publication.config import PublicationConfig
from learner.publication.publisher import Publisher
from tests.actors.generation.conftest import classes_of_transformers  # noqa: F401
from tests.actors.generation.test_engine import log_probs
from tests.fakes.architectures import WORDS, architecture, long_but
from tests.fakes.canaries import canary_tokens
from tests.fakes.generators import spec_of
from tests.fakes.models import with_adapter

LORA = LoraConfig(rank=3, alpha=4)
CANARY = canary_tokens(WORDS, 16)
WITHOUT = {
    "gpt-2": "the linear layers of GPT2LMHeadModel beside its head are none",
    "qwen-3-moe": "vLLM computes a mixture of experts beside adapters on GPUs alone",
}
"""Architectures whose engines apply no adapters on CPU, and what is said."""


def engine_of(directory: Path) -> Engine:
    settings = GeneratorConfig(dtype="float32", max_model_len=64, max_running_prompts=4, kv_cache_mib=16)
    return Engine(spec_of(directory, settings, SamplingConfig(max_new_tokens=16), seed=3, adapter=LORA))


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.parametrize("name", long_but("llama-3", "gemma-2", "gpt-2"))
def test_an_architecture_takes_adapters_or_says_why_not(tmp_path: Path, name: str) -> None:
    base = architecture(tmp_path / "hub", name)
    if name in WITHOUT:
        with pytest.raises(UsageError, match=WITHOUT[name]):
            engine_of(tmp_path / "hub")
        return
    adapted = with_adapter(tmp_path / "hub", LORA, seed=1)
    for model in (base, adapted):
        model.set_attn_implementation("eager")  # the default leaves out the soft cap of Gemma 2
    before, after = (log_probs(model, list(CANARY)) for model in (base, adapted))
    assert max(abs(x - y) for x, y in zip(before, after, strict=True)) > 0.05, "the adapter changes too little to tell"
    engine = engine_of(tmp_path / "hub")
    publisher = Publisher(PublicationConfig(), tmp_path / "shm")
    tensors = {name: tensor.detach() for name, tensor in peft_form.tensors(adapted).items()}
    canary = Canary(CANARY, tuple(after))
    engine.load(publisher.publish(1, tensors, canary, fresh=canary))
    publisher.close()
    assert engine.gap is not None
    assert engine.gap < 2e-4
