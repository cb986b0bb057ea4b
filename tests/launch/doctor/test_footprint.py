"""Memory and disk by arithmetic, against published figures and figures added up by hand."""

from dataclasses import replace

import pytest

from actors.adapters import peft_form
from actors.adapters.config import LoraConfig
from launch.doctor import footprint
from launch.doctor.footprint import (
    MASKED_SCORES,
    Pass,
    activation_bytes,
    adapter_parameters,
    exchanged_bytes,
    head_bytes,
    kv_bytes_per_token,
    layer_activations,
    learner_memory,
    loading_bytes,
    mask_bytes,
    pass_of,
    reduction_bytes,
    size,
)
from launch.doctor.model_facts import WORLD_POLICY, ModelFacts
from launch.settings.loading import load_config
from launch.settings.run import RunConfig
from learner.backend.deepspeed_config import BUCKET
from learner.config import TrainerConfig
from learner.tensors.layout import CALL_SCORES
from learner.world.policy import build_policy

GIB = 1 << 30


def model(parameters, **sizes):
    given = {"layers": 2, "hidden": 4, "kv_heads": 2, "head_size": 2, "vocabulary": 5} | sizes
    return ModelFacts(parameters=parameters, **given)


def states(psi, stage, ranks=1, dtype="bfloat16", reference=False, **settings):
    config = TrainerConfig(zero_stage=stage, ranks=ranks, dtype=dtype, **settings)
    return learner_memory(model(psi), model(psi) if reference else None, config, average=False)[0]


@pytest.mark.parametrize(("stage", "published"), [(1, 31.4e9), (2, 16.6e9), (3, 1.9e9)])
def test_model_states_are_those_of_the_zero_paper(stage, published):
    """Rajbhandari et al. 2020, figure 1: 7.5 billion parameters on 64 GPUs, gradients in 16 bits.

    Here they are summed in float32: six bytes at stage 1, where both are kept, and four above, and stage 3 keeps a
    bucket of them besides.
    """
    psi, ranks = 7_500_000_000, 64
    more = {1: 4 * psi, 2: 2 * psi / ranks, 3: 2 * psi / ranks + 4 * BUCKET}[stage]
    assert states(psi, stage, ranks) - more == pytest.approx(published, abs=0.05e9)


@pytest.mark.parametrize(
    ("stage", "dtype", "ranks", "per_parameter"),
    [
        (0, "float32", 1, 20),
        (1, "float32", 1, 24),
        (1, "float32", 2, 18),
        (1, "bfloat16", 1, 22),
        (1, "bfloat16", 2, 16),
        (2, "float32", 1, 24),
        (2, "bfloat16", 1, 20),
        (2, "bfloat16", 2, 12),
        (3, "bfloat16", 1, 24),
        (3, "bfloat16", 2, 14),
    ],
)
def test_a_rank_holds_what_was_counted_in_live_engines(stage, dtype, ranks, per_parameter):
    """Bytes per parameter of all tensors of a learner's rank on CPU with its reference, gradients and moments there at
    once: 8.5 million parameters; counted to within 0.04, at stage 3 on two ranks 0.5 more."""
    assert states(1_000_000, stage, ranks, dtype, reference=True) == per_parameter * 1_000_000


def test_an_average_is_kept_in_float32_and_in_the_model_s_dtype():
    config = TrainerConfig(zero_stage=2, dtype="bfloat16")
    without, with_average = (learner_memory(model(100), None, config, average=kept)[0] for kept in (False, True))
    assert with_average - without == (4 + 2) * 100


@pytest.mark.parametrize(
    ("stage", "dtype", "on_device", "on_host"),
    [
        # Weights and reference; gradients in float32 where they are summed on the GPU; unsummed ones at stage 1.
        (1, "bfloat16", 2 + 2 + 4 + 2, (12 + 4 + 2) / 4),
        (2, "bfloat16", 2 + 2 + 4 / 4, (12 + 4 + 2) / 4),
        (2, "float32", 4 + 4, (12 + 4 + 4) / 4),
        (3, "bfloat16", (2 + 2) / 4 + 4, (12 + 4) / 4),  # and a bucket that holds all gradients of so small a model
    ],
)
def test_an_offloaded_optimizer_moves_to_the_host_and_its_gradients_only_at_some_stages(
    stage, dtype, on_device, on_host
):
    """At stages 1 and 2 in bfloat16 DeepSpeed sums the gradients of its partition on the GPU all the same: 4.6 GiB of a
    model of 1.2 billion parameters that were not counted."""
    config = TrainerConfig(zero_stage=stage, ranks=4, dtype=dtype, offload_optimizer=True, gpus_per_rank=1)
    device, host = learner_memory(model(1000), model(1000), config, average=False)
    assert (device, host) == (on_device * 1000, on_host * 1000)


@pytest.mark.parametrize(
    ("stage", "left", "on_host"), [(1, 2 * 5 * 4, 2 * 1000), (2, 2 * 5 * 4, 2000), (3, 0, 2 * 250)]
)
def test_an_offloaded_reference_leaves_its_largest_module_on_the_gpu_or_nothing_where_it_is_sharded(
    stage, left, on_host
):
    """A thousand weights of two bytes on four ranks, of which the embedding has 5 x 4."""
    config = TrainerConfig(zero_stage=stage, ranks=4, dtype="bfloat16", gpus_per_rank=1)
    without, _ = learner_memory(model(1000), None, config, average=False)
    device, host = learner_memory(model(1000), model(1000), config, average=False, offload_reference=True)
    assert (device - without, host) == (left, on_host)
    both = config.model_copy(update={"offload_optimizer": True})
    _, optimizer = learner_memory(model(1000), model(1000), both, average=False)
    assert learner_memory(model(1000), model(1000), both, average=False, offload_reference=True)[1] == (
        optimizer + on_host
    )


def test_an_offloaded_reference_of_a_rank_on_cpu_is_where_it_was():
    config = TrainerConfig(zero_stage=2, dtype="bfloat16")
    held, offloaded = (
        learner_memory(model(100), model(100), config, average=False, offload_reference=offload)
        for offload in (False, True)
    )
    assert held == offloaded


def test_a_reference_actor_needs_its_weights_and_a_pass_without_gradient():
    """In bfloat16 two bytes a weight; the head's float32 logits and exponentials of 512 tokens: 8 x 512 x 128,256."""
    settings = {"model": {"path": "p"}, "learner": {"dtype": "bfloat16"}, "reference": {"count": 1}}
    config = RunConfig.model_validate(settings)
    weights, active = footprint.reference_memory(LLAMA_1B, config)
    assert (weights, active) == (
        2 * 1_235_814_400,
        max(8 * 512 * 128_256, 2 * 8192 * layer_activations(LLAMA_1B, "bfloat16")),
    )
    config = RunConfig.model_validate(settings | {"reference": {"count": 1, "dtype": "float32"}})
    assert footprint.reference_memory(LLAMA_1B, config)[0] == 4 * 1_235_814_400


LLAMA_1B = model(1_235_814_400, layers=16, hidden=2048, kv_heads=8, head_size=64, vocabulary=128_256, heads=32)
LLAMA_8B = model(8_030_261_248, layers=32, hidden=4096, kv_heads=8, head_size=128, vocabulary=128_256, heads=32)
LLAMA_1B, LLAMA_8B = replace(LLAMA_1B, intermediate=8192), replace(LLAMA_8B, intermediate=14_336)


def test_a_layer_keeps_what_was_counted_in_its_class():
    """Elements per token and hidden unit that autograd saved in bfloat16, in transformers 5: 26.04 for a Llama of width
    3.5 h with as many key-value heads as query heads, 24.54 with a quarter of them, 18.54 with width 2 h, 18.04 for a
    GPT-NeoX of width 4 h. 16 were assumed for all."""
    sizes = {"hidden": 512, "head_size": 64}
    llama, narrow = {"intermediate": 1792}, {"intermediate": 1024}
    assert layer_activations(model(1, kv_heads=8, **sizes, **llama), "bfloat16") == 26.0 * 512
    assert layer_activations(model(1, kv_heads=2, **sizes, **llama), "bfloat16") == 24.5 * 512
    assert layer_activations(model(1, kv_heads=2, **sizes, **narrow), "bfloat16") == 18.5 * 512
    neox = model(1, kv_heads=8, intermediate=2048, gated=False, **sizes)
    assert layer_activations(neox, "bfloat16") == 18.0 * 512


def test_the_head_of_a_large_vocabulary_by_hand():
    """Llama 3.1 8B: a gradient of the head in float32, 1.96 GiB, and a chunk's product in bfloat16, 0.98, beside 512
    rows of logits in float32 and in bfloat16, 0.37. The logits alone were counted."""
    config = TrainerConfig(dtype="bfloat16", gpus_per_rank=1)
    expected = 4 * 128_256 * 4096 + 2 * 128_256 * 4096 + 512 * 128_256 * (4 + 2)
    assert head_bytes(LLAMA_8B, config, 8192) == expected
    assert expected / GIB == pytest.approx(1.957 + 0.979 + 0.367, abs=0.001)
    # On CPU torch copies the product to float32 before it adds it: 108 MiB in a pass of SmolLM2-135M.
    assert head_bytes(LLAMA_8B, TrainerConfig(dtype="bfloat16"), 8192) == expected + 4 * 128_256 * 4096
    # A head in float32: its gradient, a copy of its weights and a chunk's product, and the logits' gradient.
    assert head_bytes(LLAMA_8B, config, 8192, "float32") == 3 * 4 * 128_256 * 4096 + 512 * 128_256 * 4
    # A small vocabulary in float32: forward, logits and their exponentials, is more than backward.
    assert head_bytes(model(1), TrainerConfig(dtype="float32"), 100) == max(8 * 100 * 5, 4 * 100 * 5 + 8 * 5 * 4)


def test_activations_by_hand():
    # Two layers of 10 tokens: 10 x 4 of hidden units, 2 x 4 of keys and values, 4 x 16 of the MLP, in 2 bytes.
    layer = 10 * 2 * (10 * 4 + 2 * 4 + 4 * 16)
    head = max(8 * 8 * 5, 8 * 5 * (4 + 2) + 5 * 4 * (4 + 2))
    config = TrainerConfig(dtype="bfloat16", logprob_chunk=8, gpus_per_rank=1)
    again = 10 * 2 * 2 * 16  # gradients that a gated MLP adds
    assert activation_bytes(model(1), config, Pass(10)) == 2 * layer + max(head, again)
    # With checkpointing two inputs; and, when its gradients are computed, one layer. The bucket here is one element.
    config = TrainerConfig(dtype="bfloat16", logprob_chunk=8, gpus_per_rank=1, gradient_checkpointing=True)
    inputs = 2 * (2 * 10 * 4)
    assert activation_bytes(model(1), config, Pass(10)) == max(inputs + max(head, layer + again), layer + 8 * 1)


def test_a_prompt_that_is_shared_costs_keys_for_each_completion_and_masks_once():
    """By hand: a prompt of 3 tokens, two completions of 2: 7 tokens, 6 keys more, 9 + 2 x 2 x 5 scores."""
    one = pass_of(3, 2, 2, 7)
    assert one == Pass(7, 6, 29)
    assert pass_of(3, 2, 2, 28) == Pass(28, 24, 4 * 29)
    config = TrainerConfig(dtype="bfloat16", logprob_chunk=8)
    # Four query heads on two of keys: 2 bytes of the mask for each of two heads.
    facts = model(1, heads=4)
    assert mask_bytes(facts, config, one) == 29 * 2 * 2
    added = activation_bytes(facts, config, one) - activation_bytes(facts, config, Pass(7))
    assert added == 29 * 4 + 2 * (2 * 2 * 2 * 2 * 6)  # two layers: keys and values of 2 heads of 2, in 2 bytes


def test_ranks_that_split_a_sequence_divide_its_activations_and_repeat_keys_that_are_too_few():
    """By hand, of Llama 3.1 8B on 16 ranks: 8 heads of keys become 16, so that each has one, for two query heads."""
    whole, split = pass_of(300, 600, 2, 24_000), pass_of(300, 600, 2, 24_000, 16)
    assert (split.tokens, split.repeated_keys) == (1500, 600)
    # Sixteen prompts get masks of 300 x 300; completions of 600 x 900, more than 2^18 scores, get none if ranks split.
    assert (whole.scores, split.scores) == (16 * (300**2 + 2 * 600 * 900), 16 * 300**2)
    assert MASKED_SCORES == CALL_SCORES == 262_144
    config = TrainerConfig(dtype="bfloat16", ranks=16, sequence_parallel=16)
    assert mask_bytes(LLAMA_8B, config, split) == split.scores * 2 * 2
    # Queries and outputs of 32 heads, keys and values of 16, of 128 units in 2 bytes; 15 of 16 parts to others.
    assert exchanged_bytes(LLAMA_8B, config, split) == 1500 * 2 * 128 * (2 * 32 + 2 * 16) * 15 / 16
    assert exchanged_bytes(LLAMA_8B, TrainerConfig(dtype="bfloat16"), whole) == 0.0


def test_what_a_rank_gathers_and_reduces_at_a_time_is_bounded_by_deepspeed_s_limits():
    """ZeRO-3 on several ranks: up to a billion weights of policy and reference each, and a bucket of gradients."""
    config = TrainerConfig(dtype="bfloat16", zero_stage=3, ranks=4, gradient_checkpointing=True, gpus_per_rank=1)
    alone = config.model_copy(update={"ranks": 1})
    gathered = activation_bytes(LLAMA_8B, config, Pass(64)) - activation_bytes(LLAMA_8B, alone, Pass(64))
    assert gathered == pytest.approx(2 * 2 * 1_000_000_000, rel=1e-9)
    layer = 64 * 2 * layer_activations(LLAMA_8B, "bfloat16")
    # The bucket is full when the layers that filled it, 5 of 80 parts of the model, have freed their inputs.
    kept = 64 * 2 * 4096 * 32 * (1 - BUCKET / 8_030_261_248)
    assert activation_bytes(LLAMA_8B, alone, Pass(64)) == pytest.approx(kept + layer + 8 * BUCKET, rel=1e-9)


def test_a_smaller_bucket_and_a_sum_in_bfloat16_take_less_while_gradients_are_reduced():
    """By hand, at ZeRO-3 on one rank: the bucket in bfloat16 twice, and once more in float32."""
    config = TrainerConfig(dtype="bfloat16", zero_stage=3)
    smaller = TrainerConfig(
        dtype="bfloat16", zero_stage=3, deepspeed={"zero_optimization": {"reduce_bucket_size": 1_000_000}}
    )
    half = TrainerConfig(dtype="bfloat16", zero_stage=3, reduce_dtype="bfloat16")
    assert [reduction_bytes(LLAMA_8B, each) for each in (config, smaller, half)] == [8 * BUCKET, 8_000_000, 4 * BUCKET]
    saved = [learner_memory(LLAMA_8B, None, each, average=False)[0] for each in (config, smaller)]
    assert saved[0] - saved[1] == pytest.approx(4 * (BUCKET - 1_000_000))


def test_a_learner_on_gpus_loads_through_the_memory_of_one_host():
    """Rank 0 reads 2 bytes a weight of the larger model: 131.4 GiB for 70 billion, whatever the number of ranks."""
    seventy = model(70_553_706_496)
    config = TrainerConfig(dtype="bfloat16", zero_stage=3, ranks=32, gpus_per_rank=1)
    assert loading_bytes(seventy, model(10), config) == 2 * 70_553_706_496
    assert pytest.approx(131.4, abs=0.05) == 2 * 70_553_706_496 / GIB
    assert loading_bytes(model(10), seventy, config) == 2 * 70_553_706_496
    assert loading_bytes(model(10), None, config) == 2 * 10
    assert loading_bytes(model(10), None, TrainerConfig(dtype="bfloat16")) == 0.0


def test_keys_and_values_of_a_token_are_those_of_the_paged_attention_paper():
    """Kwon et al. 2023, section 3: 800 KB for a token of OPT-13B in 16 bits."""
    opt = model(13_000_000_000, layers=40, hidden=5120, kv_heads=40, head_size=128)
    assert kv_bytes_per_token(opt, "bfloat16") == 800 << 10


def test_an_engine_on_cpu_takes_weights_and_its_cache_and_a_mixture_two_models():
    config = load_config("embedded", ["generators.kv_cache_mib=64"])
    assert footprint.generator_memory(WORLD_POLICY, config) == 4 * WORLD_POLICY.parameters + (64 << 20)
    mixed = load_config("embedded-nash-md", ["learner.loss.opponent.kind=mixture", "generators.kv_cache_mib=64"])
    assert footprint.generator_memory(WORLD_POLICY, mixed) == 2 * 4 * WORLD_POLICY.parameters + (64 << 20)


def test_tensor_parallel_engines_share_weights_and_cache():
    passed = ["model.path=/m", "prompts.source=/p.jsonl", "judging.judge.path=/rm"]
    policy = model(8_000_000_000, layers=32, kv_heads=8, head_size=128)
    config = load_config("node-8gpu", passed)
    # 2 bytes a weight; 2 x 32 x 8 x 128 x 2 bytes of keys and values for each of 1024 tokens.
    alone = 16_000_000_000 + 131_072 * 1024
    assert footprint.generator_memory(policy, config) == alone
    split = load_config("node-8gpu", [*passed, "generators.tensor_parallel_size=2"])
    assert footprint.generator_memory(policy, split) == alone / 2


def test_only_sampled_opponents_of_another_model_double_the_engine():
    def models(kind, **learner):
        loss = {"kind": "nash_pg", "opponent": {"kind": kind}}
        return footprint.engine_models(RunConfig(model={"path": "world"}, learner={"loss": loss, **learner}))

    kinds = ("weighted", "self", "mixture", "reference", "ema")
    assert [models(kind) for kind in kinds] == [1, 1, 2, 2, 2]
    assert [models(kind, lora={}) for kind in kinds[:-1]] == [1, 1, 2, 1]
    assert models("reference", lora={"publish": "merged"}) == 2


@pytest.mark.parametrize(
    ("settings", "per_parameter"),
    [
        # Files of a run of the demo, ZeRO 1, float32: 5,330,696 + 5,343,230 + 15,987,197 bytes of 1,331,904 parameters.
        ({"zero_stage": 1, "dtype": "float32"}, 20),
        ({"zero_stage": 2, "dtype": "bfloat16"}, 2 + 2 + 12),
        ({"zero_stage": 3, "dtype": "bfloat16"}, 2 + 12),
        ({"zero_stage": 0, "dtype": "float32"}, 4 + 4 + 8),
    ],
)
def test_a_checkpoint_holds_model_weights_and_optimizer(settings, per_parameter):
    config = TrainerConfig(**settings)
    assert footprint.checkpoint_bytes(WORLD_POLICY, config) == per_parameter * WORLD_POLICY.parameters
    assert (
        footprint.checkpoint_bytes(WORLD_POLICY, config, averaged=WORLD_POLICY.parameters)
        == (per_parameter + 4) * WORLD_POLICY.parameters
    )


def test_a_run_s_disk_is_the_checkpoints_kept_one_more_and_the_final_model():
    config = load_config("embedded", ["checkpoints.keep=3", "learner.zero_stage=1"])
    assert footprint.disk_bytes(WORLD_POLICY, config) == (4 * 20 + 4) * WORLD_POLICY.parameters


def test_a_publication_is_in_the_learner_s_dtype_and_twice_with_an_average():
    config = load_config("embedded-nash-md", ["learner.loss.opponent.kind=ema"])
    assert footprint.publication_bytes(WORLD_POLICY, config) == 2 * 4 * WORLD_POLICY.parameters
    bfloat16 = load_config("embedded", ["learner.dtype=bfloat16", "learner.zero_stage=1"])
    assert footprint.publication_bytes(WORLD_POLICY, bfloat16) == 2 * WORLD_POLICY.parameters


def test_sizes_as_text():
    assert size(1.5 * GIB) == "1.5 GiB"
    assert size(GIB - 1) == "1,024.0 MiB"
    assert size(512) == "0.0 MiB"


@pytest.mark.parametrize(
    ("transport", "shards", "stage", "on_gpu", "on_host"),
    [
        ("shm", 2, 2, 0, 2),  # two versions in /dev/shm
        ("object_store", 2, 2, 0, 0),  # in Ray's own memory, which is counted whole
        ("gloo", 2, 2, 0, 2 + 6),  # two at the learner, one in each of three engines' two processes
        ("nccl", 2, 2, 1, 2 + 6),  # the same, and one on the GPU until it is sent
        ("nccl", 2, 3, 0, 2 + 6),  # no GPU has the whole model: by the bucket from host memory
        ("ipc", 1, 2, 2, 0),
    ],
)
def test_publications_are_counted_where_they_are(
    transport: str, shards: int, stage: int, on_gpu: int, on_host: int
) -> None:
    one_card = transport == "ipc"
    config = RunConfig.model_validate(
        {
            "model": {"path": "m"},
            "generators": {"count": 3, "tensor_parallel_size": shards, **({"gpus": 0.2} if one_card else {})},
            "learner": {"gpus_per_rank": 0.4 if one_card else 1.0, "ranks": 1 if one_card else 2, "zero_stage": stage},
            "publication": {"transport": transport},
        }
    )
    policy, one = model(1000), 2000
    assert footprint.kept_on_gpu(policy, config) == on_gpu * one
    assert footprint.kept_on_host(policy, config) == on_host * one


# Adapters


LLAMA_8B = ModelFacts(8_030_261_248, 32, 4096, 8, 128, vocabulary=128_256, heads=32, intermediate=14_336)
"""Llama 3.1 8B, from its config.json."""


def test_adapters_of_an_8b_model_counted_by_hand():
    """Of rank 16: per layer q, o 8192 each, k, v 5120 each, gate, up, down 18432 each, times 16, times 32 layers."""
    per_layer = 16 * (2 * 8192 + 2 * 5120 + 3 * 18_432)
    assert adapter_parameters(LLAMA_8B, LoraConfig(rank=16)) == 32 * per_layer == 41_943_040
    assert adapter_parameters(LLAMA_8B, LoraConfig(rank=8, targets=["q_proj", "v_proj"])) == 32 * 8 * (8192 + 5120)


def test_adapters_of_a_real_model_are_those_that_peft_makes(tmp_path):
    build_policy().save_pretrained(tmp_path)
    lora = LoraConfig(rank=5)
    shapes = peft_form.outline(tmp_path, lora).values()
    assert adapter_parameters(WORLD_POLICY, lora) == sum(rows * columns for rows, columns in shapes)


@pytest.mark.parametrize(("stage", "ranks"), [(1, 1), (2, 2), (3, 4)])
def test_a_rank_with_adapters_holds_the_base_once_and_states_of_the_adapters(stage, ranks):
    lora = LoraConfig(rank=16)
    config = TrainerConfig(zero_stage=stage, ranks=ranks, lora=lora)
    base, phi = 8_030_261_248, 41_943_040
    by_hand = {
        1: 2 * (base + phi) + 4 * phi + 2 * phi + 12 * phi,
        2: 2 * (base + phi) + (4 * phi + 12 * phi) / 2,
        # And the bucket of gradients, as large as all adapters: four bytes each.
        3: (2 * (base + phi) + 4 * phi + 12 * phi) / 4 + 4 * phi,
    }
    assert learner_memory(LLAMA_8B, None, config, average=False) == (pytest.approx(by_hand[stage]), 0.0)


def test_publications_and_checkpoints_of_adapters_are_small():
    whole = RunConfig(model={"path": "world"}, learner={"lora": {"publish": "merged", "save": "merged"}})
    adapters = RunConfig(model={"path": "world"}, learner={"lora": {}})
    phi = 41_943_040
    assert footprint.publication_bytes(LLAMA_8B, adapters) == 2 * phi
    assert footprint.publication_bytes(LLAMA_8B, whole) == 2 * LLAMA_8B.parameters
    assert footprint.checkpoint_bytes(LLAMA_8B, adapters.learner) == (2 + 2 + 12) * phi
    assert footprint.checkpoint_bytes(LLAMA_8B, whole.learner) == 14 * phi + 2 * LLAMA_8B.parameters


@pytest.mark.parametrize(
    ("learner", "per_parameter"),
    [
        ({"zero_stage": 2, "dtype": "bfloat16"}, 4 + 2),
        ({"zero_stage": 1, "dtype": "float32"}, 4),  # in float32 the average takes the weights' place itself
        ({"zero_stage": 3, "dtype": "bfloat16", "ranks": 4}, (4 + 2) / 4),
    ],
)
def test_an_anchor_takes_one_float32_average_and_a_copy_in_the_weights_dtype(learner, per_parameter):
    anchored, plain = (
        RunConfig.model_validate({"model": {"path": "x"}, "learner": learner | {"anchor": {"weight": weight}}})
        for weight in (0.32, 0.0)
    )
    assert footprint.average_bytes(model(1000), anchored) == per_parameter * 1000
    assert footprint.averaged_parameters(model(1000), anchored) == 1000
    assert footprint.average_bytes(model(1000), plain) == footprint.averaged_parameters(model(1000), plain) == 0


def test_the_mean_of_the_last_weights_is_one_float32_average_and_one_more_model_on_disk():
    last, plain = (
        RunConfig.model_validate({"model": {"path": "x"}, "learner": {"dtype": "bfloat16", "average_last": share}})
        for share in (0.25, 0.0)
    )
    assert footprint.average_bytes(model(1000), last) == 4 * 1000
    assert footprint.disk_bytes(model(1000), last) - footprint.disk_bytes(model(1000), plain) == (3 * 4 + 2) * 1000
