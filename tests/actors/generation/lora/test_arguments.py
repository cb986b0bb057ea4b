"""What vLLM is told of adapters."""

import pytest

from actors.adapters.config import LoraConfig

pytestmark = pytest.mark.vllm

NAMES = [
    f"base_model.model.model.layers.0.{layer}.lora_{part}.weight"
    for layer in ("self_attn.q_proj", "mlp.up_proj")
    for part in "AB"
]


@pytest.mark.parametrize(("rank", "largest"), [(1, 1), (2, 8), (8, 8), (9, 16), (257, 320), (512, 512)])
def test_an_engine_has_room_for_one_adapter_of_the_rank_or_the_next_that_vllm_knows(rank, largest):
    from actors.generation.lora.arguments import engine_arguments

    arguments = engine_arguments(LoraConfig(rank=rank), NAMES)
    assert arguments["max_lora_rank"] == largest
    assert (arguments["max_loras"], arguments["max_cpu_loras"]) == (1, 1)


def test_only_layers_with_published_tensors_get_room():
    from actors.generation.lora.arguments import engine_arguments

    assert engine_arguments(LoraConfig(), NAMES)["lora_target_modules"] == ["q_proj", "up_proj"]


def test_every_rank_that_may_be_set_has_room():
    from typing import get_args

    from vllm.config.lora import MaxLoRARanks

    (largest,) = (each.le for each in LoraConfig.model_fields["rank"].metadata if hasattr(each, "le"))
    assert largest == max(get_args(MaxLoRARanks))
