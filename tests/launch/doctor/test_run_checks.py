"""Whether a machine can hold a run, decided from facts made by hand."""

from pathlib import Path

from launch.doctor import run_checks as checks
from launch.doctor.machine import Gpu, Memory
from launch.doctor.model_facts import WORLD_POLICY, ModelFacts
from launch.doctor.run_checks import Models
from launch.settings.loading import load_config
from launch.settings.run import ClusterConfig

GIB = 1 << 30
PASSED = ["model.path=/m", "prompts.source=/p.jsonl", "judging.judge.path=/rm"]
WORLD = Models(WORLD_POLICY, WORLD_POLICY)
EIGHT = ModelFacts(8_000_000_000, 32, 4096, 8, 128, 128_256)
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
    # ZeRO-3 over 4: (2 + 4 + 12 + 2) x 8e9 / 4 and a bucket of 4 x 5e8 bytes, 42e9 bytes.
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


def test_what_is_only_likely_to_be_too_much_is_a_warning():
    """39.1 GiB are sure; 2.5 of activations and 0.5 of logits bring them over nine tenths of 44 GiB."""
    found = by_name(checks.check_gpu_memory(node(), Models(EIGHT, EIGHT), gpus(total=44 * GIB)))
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


def test_models_on_gpus_take_no_host_memory_but_an_offloaded_optimizer_does():
    judged = Models(EIGHT, EIGHT, 2.0 * EIGHT.parameters)
    assert sum(checks.host_memory(node(), judged).values()) == 0
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
    assert checks.largest_pass(embedded(*pairs, "learner.micro_batch_tokens=1000")) == 2 * 2 * 12
    assert checks.largest_pass(embedded(*pairs, "learner.micro_batch_tokens=40")) == 40
    assert checks.largest_pass(embedded(*pairs, "learner.micro_batch_tokens=1")) == 2 * 12
    games = load_config("embedded-nash-md", [*settings, "learner.micro_batch_tokens=1"])
    assert checks.largest_pass(games) == games.sampling.completions_per_prompt * 12


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
