"""Whether a machine can hold a run, decided from facts made by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from launch.doctor import footprint
from launch.doctor import run_checks as checks
from launch.doctor.footprint import Pass
from launch.doctor.machine import Gpu, Memory
from launch.doctor.model_facts import WORLD_POLICY, ModelFacts
from launch.doctor.run_checks import Models
from launch.settings.loading import load_config
from launch.settings.run import ClusterConfig

GIB = 1 << 30
PASSED = ["model.path=/m", "prompts.source=/p.jsonl", "judging.judge.path=/rm"]
WORLD = Models(WORLD_POLICY, WORLD_POLICY)
EIGHT = ModelFacts(8_000_000_000, 32, 4096, 8, 128, 128_256, heads=32, intermediate=14_336)
ONE = ModelFacts(1_235_814_400, 16, 2048, 8, 64, 128_256, heads=32, intermediate=8192)  # Llama 3.2 1B
ENDPOINT = (
    "judging.judge={kind: endpoint, url: 'https://judge.test/v1', model: m, api_key_env: JUDGE_KEY, request_retries: 0}"
)


def embedded(*overrides):
    return load_config("embedded", list(overrides))


def node(*overrides):
    return load_config("node-8gpu", [*PASSED, *overrides])


def gpus(count=8, total=80 * GIB):
    return [Gpu(index, "H100", total, 0, "580") for index in range(count)]


def the(findings):
    (finding,) = findings
    return finding


def by_name(findings):
    return {finding.name: finding for finding in findings}


# Placement


def test_a_run_is_placed_up_to_the_last_core_and_gpu():
    assert checks.check_placement(node(), cpus=28, gpus=8).level == "ok"
    for cpus, count in ((27, 8), (28, 7)):
        finding = checks.check_placement(node(), cpus, count)
        assert finding.level == "error"
        assert f"28 of {cpus} CPUs, 8 of {count} GPUs" in finding.text
    assert "num_cpus" in checks.check_placement(node(), 27, 8).remedy
    assert "num_cpus" not in checks.check_placement(node(), 28, 7).remedy


def test_of_a_described_node_whose_cores_are_not_known_only_gpus_are_compared():
    assert checks.check_placement(node(), None, gpus=8).text.endswith("1 judge: 28 CPUs, 8 of 8 GPUs")
    finding = checks.check_placement(node(), None, gpus=7)
    assert (finding.level, finding.text.endswith(": 28 CPUs, 8 of 7 GPUs")) == ("error", True)
    assert finding.remedy.endswith("or describe all nodes as one with --gpus")


def test_a_custom_resource_is_not_on_a_ray_that_the_run_starts():
    finding = checks.check_placement(embedded("learner.resources={rack: 0.5}"), cpus=8, gpus=0)
    assert finding.level == "error"
    assert finding.text == "the run needs 0.5 of the resource rack and Ray has 0"
    assert "cluster.address" in finding.remedy
    assert checks.check_placement(embedded("learner.resources={'node:127.0.0.1': 0.5}"), cpus=8, gpus=0).level == "ok"


def test_given_cores_count_instead_of_the_machine_s():
    assert checks.check_placement(embedded("generators.count=3"), cpus=2, gpus=0).level == "error"
    assert checks.check_placement(embedded("generators.count=3", "cluster.num_cpus=4"), cpus=2, gpus=0).level == "ok"


# Models and memory


def test_a_cache_must_hold_the_longest_sequence():
    # 2 x 3 x 6 x 32 x 4 bytes a token are 4,608; 16 MiB hold 3,640 tokens.
    kv = ("generators.kv_cache_mib=16", "generators.dtype=float32")
    fits = checks.check_cache(embedded(*kv, "generators.max_model_len=3640"), WORLD_POLICY)
    assert (fits.level, "1.3M parameters" in fits.text) == ("ok", True)
    finding = checks.check_cache(embedded(*kv, "generators.max_model_len=3641"), WORLD_POLICY)
    assert finding.level == "error"
    assert "set generators.kv_cache_mib to 17" in finding.remedy


def test_the_disk_of_a_model_that_is_not_here_is_only_reported():
    assert checks.check_disk(node(), None, Path("/"), 1).level == "ok"


def test_eight_billion_parameters_fit_eight_gpus_of_80_gb():
    models = Models(EIGHT, EIGHT, 2.0 * EIGHT.parameters)
    found = by_name(checks.check_gpu_memory(node(), models, gpus()))
    assert [finding.level for finding in found.values()] == ["ok"] * 3
    # ZeRO-3 over 4: (2 + 4 + 12 + 2) x 8e9 / 4 and a bucket of 4 x 5e8 bytes: 42e9. Publications wait on the host.
    assert "39.1 GiB" in found["learner GPU"].text
    # 2 x 8e9 bytes and 2 x 32 x 8 x 128 x 2 x 1024.
    assert "15.0 GiB" in found["engine GPU"].text
    assert "14.9 GiB" in found["judge GPU"].text


def test_each_role_is_measured_against_its_share_of_the_smallest_gpu():
    models = Models(EIGHT, EIGHT, 2.0 * EIGHT.parameters)
    small = [*gpus(7), *gpus(1, total=16 * GIB)]
    found = by_name(checks.check_gpu_memory(node(), models, small))
    assert {name: finding.level for name, finding in found.items()} == {
        "learner GPU": "error",
        "engine GPU": "error",  # 15 of 85% of 16
        "judge GPU": "ok",
    }
    found = by_name(checks.check_gpu_memory(node("judging.judge.gpus=0.5"), models, small))
    assert found["judge GPU"].level == "error"


def test_roles_that_share_a_gpu_are_added_up():
    """Each was compared with the whole card: three that fit alone passed together.

    The preset for one GPU and Llama 3.2 1B. Learner: 2 + 2 bytes a weight and a bucket of 4 x 5e8, 6.5 GiB; a bucket of
    gradients 3.73 when it is reduced, one layer whole 0.41, and inputs of 6 in 10 of the layers 0.15. Engine: 0.85 x
    0.3 of 24 GiB.
    """
    config, models = load_config("gpu-1", PASSED), Models(ONE, ONE, 2.0 * ONE.parameters)
    found = by_name(checks.check_gpu_memory(config, models, gpus(1, 24 * GIB)))
    assert {name: finding.level for name, finding in found.items()} == dict.fromkeys(found, "ok")
    assert "6.5 GiB and about 4.3 GiB" in found["learner GPU"].text
    assert found["shared GPU"].text == (
        "1 judge 2.3 GiB, 1 learner rank 10.8 GiB, 1 generator 6.1 GiB, 3 CUDA contexts 1.5 GiB on one GPU, of 24.0 GiB"
    )
    greedy = load_config("gpu-1", [*PASSED, "generators.gpu_memory_utilization=0.7"])
    found = by_name(checks.check_gpu_memory(greedy, models, gpus(1, 24 * GIB)))
    assert found["engine GPU"].level == "ok"
    assert found["shared GPU"].level == "error"  # 16.8 + 6.5 + 2.3 of 24
    assert "gpu_memory_utilization" in found["shared GPU"].remedy


@pytest.mark.parametrize(
    ("preset", "card", "learner", "together"),
    [
        # 16 phi and a bucket of 4; gathered: the embedding, 2 x 525 million; inputs of 32 layers, 2 x 2048 x 4096 each,
        # and one layer whole: 102,400 elements per token, and keys of the prompts.
        ("gpu-1-lora", 24, "800.0 MiB and about 2.0 GiB", "1 generator 17.5 GiB, 2 CUDA contexts 1,000.0 MiB"),
        ("gpu-1-80gb", 80, "16.5 GiB and about 4.0 GiB", "1 generator 30.4 GiB, 3 CUDA contexts 1.5 GiB"),
    ],
)
def test_the_presets_of_adapters_fit_their_card_with_an_8b_model(preset, card, learner, together):
    config, models = (
        load_config(preset, [*PASSED, "judging.judge.path=x:y"]),
        Models(EIGHT, None, 2.0 * EIGHT.parameters),
    )
    found = by_name(checks.check_gpu_memory(config, models, gpus(1, card * GIB)))
    assert {name: finding.level for name, finding in found.items()} == dict.fromkeys(found, "ok")
    assert learner in found["learner GPU"].text
    assert together in found["shared GPU"].text


def test_roles_with_gpus_of_their_own_are_not_added_up():
    found = checks.check_gpu_memory(node(), Models(EIGHT, EIGHT, 2.0 * EIGHT.parameters), gpus())
    assert "shared GPU" not in by_name(found)


def test_two_generators_on_one_gpu_count_twice():
    config = node("publication.transport=shm", "generators.gpus=0.5", "generators.count=2", "judging.judge.gpus=1")
    shared = by_name(checks.check_gpu_memory(config, Models(EIGHT, EIGHT), gpus()))["shared GPU"]
    assert "2 generators 68.0 GiB" in shared.text  # 2 x 0.425 of 80


def test_seventy_billion_parameters_on_32_gpus_fit_as_they_are_sharded():
    """(2 + 4 + 12 + 2) x 70.6e9 / 32 and a bucket of 2e9, 42.9 GiB; no GPU loads more than a part."""
    seventy = ModelFacts(70_553_706_496, 80, 8192, 8, 128, 128_256, heads=64, intermediate=28_672)
    config = node("learner.ranks=32", "generators.tensor_parallel_size=4", "judging.judge.gpus=0")
    found = by_name(checks.check_gpu_memory(config, Models(seventy, seventy), gpus()))
    assert {name: finding.level for name, finding in found.items()} == {"learner GPU": "ok", "engine GPU": "ok"}
    assert "needs 42.9 GiB" in found["learner GPU"].text


def test_tensor_parallel_engines_must_divide_heads_vocabulary_and_mlp():
    """vLLM refused three workers, but only after all models had been loaded. Vocabularies are padded to 64s."""

    def check(size, model=EIGHT):
        return the(checks.check_tensor_parallel(node(f"generators.tensor_parallel_size={size}"), model))

    assert check(2).level == check(4).level == check(8).level == "ok"
    three = check(3)
    assert three.level == "error"
    assert "3 does not divide 32 query heads, 14,336 hidden units of the MLP, 8 key-value heads" in three.text
    assert "128,256 rows" not in three.text  # 3 x 42,752
    assert three.remedy == "set generators.tensor_parallel_size to 2"
    sixteen = check(16)  # more than the key-value heads: each is copied, to two workers
    assert sixteen.level == "ok"
    padded = replace(EIGHT, heads=36, kv_heads=12, intermediate=36, vocabulary=128_300)
    assert "128,320 rows of the padded vocabulary" in check(3, padded).text
    assert list(checks.check_tensor_parallel(node(), EIGHT)) == []


def test_shares_of_gpus_that_no_card_has_left_are_refused():
    config = node("publication.transport=shm", "generators.gpus=0.6", "generators.count=2", "learner.ranks=1")
    finding = checks.check_placement(config, cpus=28, gpus=3)  # 1 + 1 + 2 x 0.6 are 3.2
    assert finding.level == "error"
    config = node("publication.transport=shm", "generators.gpus=0.6", "judging.judge.gpus=0.6", "learner.ranks=1")
    finding = checks.check_placement(config, cpus=28, gpus=4)  # 1 + 4 x 0.6 are 3.4, on five cards
    assert finding.level == "error"
    assert "generator 3 of 3 needs 4 CPUs and 0.6 of one GPU" in finding.text
    assert "generators.gpus" in finding.remedy


def test_who_shares_a_gpu_is_told():
    finding = checks.check_placement(load_config("gpu-1", PASSED), cpus=8, gpus=1)
    assert finding.level == "ok"
    assert finding.text.endswith("6 of 8 CPUs, 1 of 1 GPUs; 1 judge, 1 learner rank and 1 generator share GPU 0")


def test_what_is_only_likely_to_be_too_much_is_a_warning():
    """39.1 GiB are sure. Inputs of 30 of 32 layers 1.9 GiB, one layer whole 1.5, a bucket of gradients 3.7, and two
    times 1.9 of gathered weights bring them over nine tenths of 55 GiB."""
    found = by_name(checks.check_gpu_memory(node(), Models(EIGHT, EIGHT), gpus(total=55 * GIB)))
    assert "about 10.9 GiB" in found["learner GPU"].text
    assert found["learner GPU"].level == "warning"
    assert "zero_stage" in found["learner GPU"].remedy


def test_without_gpus_to_compare_with_the_estimate_is_told():
    found = list(checks.check_gpu_memory(node(), Models(EIGHT, EIGHT), []))
    assert {finding.level for finding in found} == {"ok"}
    assert "no GPU here" in found[0].text


def test_host_memory_adds_up_the_roles_of_a_cpu_run():
    config = embedded("generators.count=2", "generators.kv_cache_mib=64", "learner.zero_stage=1")
    psi = WORLD_POLICY.parameters
    assert checks.host_memory(config, WORLD) == {
        "learner": 24 * psi,
        "generators": 2 * (4 * psi + (64 << 20)),
        "judges": 0.0,
    }


def test_a_reference_on_actors_of_its_own_is_counted_there_and_not_at_the_learner():
    """Float32 on CPU: four bytes a weight less in the rank, and as many in each of two actors."""
    psi = WORLD_POLICY.parameters
    held = checks.host_memory(embedded("learner.zero_stage=1"), WORLD)
    apart = checks.host_memory(embedded("learner.zero_stage=1", "reference.count=2"), WORLD)
    assert apart == held | {"learner": held["learner"] - 4 * psi, "reference actors": 2 * 4 * psi}
    memory = Memory(16 * GIB, 16 * GIB)
    assert "6 processes" in checks.check_memory(embedded("reference.count=2"), WORLD, memory).text
    placed = checks.check_placement(embedded("reference.count=2"), cpus=4, gpus=0)
    assert "1 judge, 2 reference actors: 4 of 4 CPUs" in placed.text
    assert checks.check_placement(embedded("reference.count=2"), cpus=3, gpus=0).level == "error"


def test_actors_hold_the_base_of_a_learner_s_adapters():
    """Which has no reference of its own to be counted."""
    config = embedded("reference.count=1", "learner.lora={rank: 4}")
    assert checks.host_memory(config, Models(WORLD_POLICY, None))["reference actors"] == 4 * WORLD_POLICY.parameters


def test_a_reference_actor_on_a_gpu_is_compared_with_its_share():
    config = node("reference.count=1", "reference.gpus=0.25", "judging.judge.gpus=0")
    models = Models(EIGHT, EIGHT)
    found = by_name(checks.check_gpu_memory(config, models, gpus()))
    held = by_name(checks.check_gpu_memory(node("judging.judge.gpus=0"), models, gpus()))
    assert found["reference GPU"].level == "ok"
    assert found["reference GPU"].text.startswith("weights need 14.9 GiB")
    assert found["reference GPU"].text.endswith("of 20.0 GiB")
    assert found["learner GPU"].text != held["learner GPU"].text
    assert checks.host_memory(config, models).keys() == {"learner", "generators", "judges"}


def test_a_learner_on_gpus_loads_through_host_memory_once():
    """Rank 0 reads 8 billion parameters in bfloat16, 15 GiB; none of it was counted."""
    judged = Models(EIGHT, EIGHT, 2.0 * EIGHT.parameters)
    assert checks.host_memory(node(), judged) == {"learner": 2 * EIGHT.parameters, "generators": 0.0, "judges": 0.0}
    offloaded = checks.host_memory(node("learner.offload_optimizer=true"), judged)
    assert offloaded["learner"] == 16 * EIGHT.parameters
    on_cpu = node("judging.judge.gpus=0", "judging.count=3")
    assert checks.host_memory(on_cpu, judged)["judges"] == 3 * 2 * EIGHT.parameters


def test_too_little_memory_is_an_error_and_too_little_free_a_warning():
    config = embedded()
    assert checks.check_memory(config, WORLD, Memory(16 * GIB, 8 * GIB)).level == "ok"
    busy = checks.check_memory(config, WORLD, Memory(16 * GIB, 2 * GIB))
    assert busy.level == "warning"
    assert "2.0 GiB free" in busy.text
    assert checks.check_memory(config, WORLD, Memory(64 << 20, 64 << 20)).level == "error"


def test_a_micro_batch_is_no_larger_than_the_rank_s_share_of_an_update_and_no_smaller_than_one_prompt():
    settings = ("prompts.max_prompt_tokens=8", "sampling.max_new_tokens=4", "replay.prompts_per_update=6")
    pairs = [*settings, "learner.ranks=4"]  # two prompts on a rank, two rows of 12 tokens for each
    alone = [*pairs, "learner.share_prompts=false"]
    assert checks.largest_pass(embedded(*alone, "learner.micro_batch_tokens=1000")) == Pass(2 * 2 * 12)
    assert checks.largest_pass(embedded(*alone, "learner.micro_batch_tokens=40")) == Pass(40)
    assert checks.largest_pass(embedded(*alone, "learner.micro_batch_tokens=1")) == Pass(2 * 12)
    # With prompts once, 8 + 2 * 4 tokens; each completion attends to 8 + 4, and the prompt to itself.
    scores = 8 * 8 + 2 * 4 * 12
    assert checks.largest_pass(embedded(*pairs, "learner.micro_batch_tokens=1000")) == Pass(2 * 16, 2 * 16, 2 * scores)
    assert checks.largest_pass(embedded(*pairs, "learner.micro_batch_tokens=24")) == Pass(24, 24, scores * 3 // 2)
    assert checks.largest_pass(embedded(*pairs, "learner.micro_batch_tokens=1")) == Pass(16, 16, scores)
    games = load_config("embedded-nash-md", [*settings, "learner.micro_batch_tokens=1"])
    rows = games.sampling.completions_per_prompt
    assert checks.largest_pass(games) == Pass(8 + rows * 4, rows * 8, 8 * 8 + rows * 4 * 12)


def test_ranks_that_split_sequences_hold_a_part_of_a_pass_each_and_its_masks_whole():
    """Four ranks in two groups: three prompts of 16 tokens for each, of which two fit into 2 x 16."""
    settings = ("prompts.max_prompt_tokens=8", "sampling.max_new_tokens=4", "replay.prompts_per_update=6")
    split = [*settings, "learner.ranks=4", "learner.sequence_parallel=2", "learner.micro_batch_tokens=16"]
    assert checks.largest_pass(embedded(*split)) == Pass(16, 16, 2 * (8 * 8 + 2 * 4 * 12))
    longer = checks.largest_pass(embedded(*split, "learner.micro_batch_tokens=1000"))
    assert longer == Pass(3 * 16 // 2, 3 * 16 // 2, 3 * (8 * 8 + 2 * 4 * 12))


def test_doctor_says_what_ranks_that_split_sequences_exchange_or_that_heads_do_not_divide():
    """A rank sends half of its 16 tokens' queries, keys, values and outputs, of 192 units each, in float32."""
    settings = ("prompts.max_prompt_tokens=8", "sampling.max_new_tokens=4", "learner.micro_batch_tokens=16")
    split = embedded(*settings, "learner.ranks=2", "learner.sequence_parallel=2", "replay.prompts_per_update=6")
    found = the(checks.check_sequence_parallel(split, WORLD_POLICY))
    assert (found.level, split.learner.dtype) == ("ok", "float32")
    assert footprint.exchanged_bytes(WORLD_POLICY, split.learner, Pass(16)) == 4 * 16 * (2 * 192 + 2 * 192) // 2
    wrong = embedded("learner.ranks=4", "learner.sequence_parallel=4")
    found = the(checks.check_sequence_parallel(wrong, WORLD_POLICY))
    assert (found.level, found.remedy) == ("error", "set learner.sequence_parallel to 2")
    assert "4 does not divide 6 attention heads" in found.text
    assert list(checks.check_sequence_parallel(embedded(), WORLD_POLICY)) == []


# Shared memory and disk


def test_shared_memory_holds_the_object_store_and_two_publications():
    config = embedded("cluster.object_store_mib=100", "publication.transport=shm")
    needed = (100 << 20) + 2 * 4 * WORLD_POLICY.parameters
    published = checks.published_bytes(config, WORLD_POLICY)
    assert checks.check_shared_memory(config.cluster, published, needed).level == "ok"
    assert checks.check_shared_memory(config.cluster, published, needed - 1).level == "error"
    other = embedded("cluster.object_store_mib=100", "publication.transport=object_store")
    assert checks.published_bytes(other, WORLD_POLICY) == 0


def test_an_object_store_must_fit_into_shared_memory():
    assert checks.check_shared_memory(ClusterConfig(object_store_mib=512), 0, GIB).level == "ok"
    small = checks.check_shared_memory(ClusterConfig(object_store_mib=512), 0, 64 << 20)
    assert small.level == "error"
    assert "64.0 MiB free" in small.text
    assert "--shm-size" in small.remedy


def test_disk_is_compared_with_one_checkpoint_and_with_all():
    config = embedded("checkpoints.keep=2", "learner.zero_stage=1")
    psi = WORLD_POLICY.parameters
    one, run = 20 * psi, (3 * 20 + 4) * psi

    def level(free):
        return checks.check_disk(config, WORLD_POLICY, Path("/runs"), free).level

    assert [level(run), level(run - 1), level(one), level(one - 1)] == ["ok", "warning", "warning", "error"]


# Judges


def test_a_missing_key_is_an_error_here_and_a_warning_on_a_cluster_and_never_shown():
    config = embedded(ENDPOINT)
    secret = the(checks.check_keys(config, {"JUDGE_KEY": "s3cret"}, elsewhere=False))
    assert secret.level == "ok"
    assert "s3cret" not in str(secret)
    for environment in ({}, {"JUDGE_KEY": ""}):
        assert the(checks.check_keys(config, environment, elsewhere=False)).level == "error"
        assert the(checks.check_keys(config, environment, elsewhere=True)).level == "warning"
    assert not list(checks.check_keys(embedded(), {}, elsewhere=False))


def test_judges_behind_http_are_found_in_an_ensemble():
    members = f"[{{judge: {ENDPOINT.partition('=')[2]}}}, {{judge: {{kind: gold}}}}]"
    config = embedded(f"judging.judge={{kind: ensemble, members: {members}}}")
    assert [judge.model for judge in checks.http_judges(config)] == ["m"]


def test_ports_that_other_machines_reach_are_listed_in_one_warning():
    assert checks.check_network(embedded(), elsewhere=False).level == "ok"
    found = checks.check_network(embedded("publication.transport=object_store"), elsewhere=True)
    assert found.level == "warning"
    assert "Ray's processes and actors, the learner's meeting point, gloo of learner and engines; all but" in found.text
    assert "SECURITY.md" in found.remedy
    assert "weight sync by gloo" in checks.check_network(embedded("publication.transport=gloo"), elsewhere=True).text
    gpus = checks.check_network(node("publication.transport=nccl"), elsewhere=True).text
    assert "NCCL and gloo of learner and engines, weight sync by nccl; all but Ray's ask for no token" in gpus
