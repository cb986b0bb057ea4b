"""Whether a machine can hold a run, decided from facts made by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from launch.doctor import run_checks as checks
from launch.doctor.machine import Folder, Gpu, Space
from launch.doctor.model_facts import WORLD_POLICY, ModelFacts
from launch.doctor.run_checks import Models
from launch.settings.loading import load_config

GIB = 1 << 30
PASSED = ["model.path=/m", "prompts.source=/p.jsonl", "judging.judge.path=/rm"]
WORLD = Models(WORLD_POLICY, WORLD_POLICY)
EIGHT = ModelFacts(8_000_000_000, 32, 4096, 8, 128, 128_256, 8192)
ENDPOINT = (
    "judging.judge={kind: endpoint, url: 'https://judge.test/v1', model: m, api_key_env: JUDGE_KEY, request_retries: 0}"
)


def embedded(*overrides):
    return load_config("embedded", list(overrides))


def node(*overrides):
    return load_config("node-8gpu", [*PASSED, *overrides])


def gpus(count=8, total=80 * GIB, capability=(9, 0)):
    return [Gpu(index, "H100", total, 0, "580", capability) for index in range(count)]


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


def test_bfloat16_engines_need_gpus_that_compute_in_it():
    assert the(checks.check_capability(node(), gpus(capability=(7, 5)))).level == "error"
    assert not list(checks.check_capability(node(), gpus(capability=(8, 0))))
    assert not list(checks.check_capability(node("generators.dtype=float32"), gpus(capability=(7, 5))))


# Models and memory


def test_a_cache_must_hold_the_longest_sequence():
    # 2 x 3 x 6 x 32 x 4 bytes a token are 4,608; 16 MiB hold 3,640 tokens.
    kv = ("generators.kv_cache_mib=16", "generators.dtype=float32")
    fits = the(checks.check_model_size(embedded(*kv, "generators.max_model_len=3640"), WORLD))
    assert (fits.level, "1.3M parameters" in fits.text) == ("ok", True)
    finding = the(checks.check_model_size(embedded(*kv, "generators.max_model_len=3641"), WORLD))
    assert finding.level == "error"
    assert "set generators.kv_cache_mib to 17" in finding.remedy


def test_nothing_is_said_of_the_size_of_a_model_that_is_not_here():
    nothing = Models(None, None)
    config = node()
    assert not list(checks.check_model_size(config, nothing))
    assert not list(checks.check_gpu_memory(config, nothing, gpus()))
    assert not list(checks.check_memory(config, nothing, Space(1, 1)))
    assert checks.check_disk(config, nothing, Folder(Path("/"), True, Space(1, 1))).level == "ok"


def test_eight_billion_parameters_fit_eight_gpus_of_80_gb():
    models = Models(EIGHT, EIGHT, ((EIGHT, "bfloat16"),))
    found = by_name(checks.check_gpu_memory(node(), models, gpus()))
    assert [finding.level for finding in found.values()] == ["ok"] * 3
    # ZeRO-3 over 4: (2 + 4 + 12 + 2) x 8e9 / 4 and a bucket of 4 x 5e8 bytes, 42e9 bytes.
    assert "39.1 GiB" in found["learner GPU"].text
    # 2 x 8e9 bytes and 2 x 32 x 8 x 128 x 2 x 1024.
    assert "15.0 GiB" in found["engine GPU"].text
    assert "14.9 GiB" in found["judge GPU"].text


def test_each_role_is_measured_against_its_share_of_the_smallest_gpu():
    models = Models(EIGHT, EIGHT, ((EIGHT, "bfloat16"),))
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
    judged = Models(EIGHT, EIGHT, ((EIGHT, "bfloat16"),))
    assert sum(checks.host_memory(node(), judged).values()) == 0
    offloaded = checks.host_memory(node("learner.offload_optimizer=true"), judged)
    assert offloaded["learner"] == 16 * EIGHT.parameters
    on_cpu = node("judging.judge.gpus=0", "judging.count=3")
    assert checks.host_memory(on_cpu, judged)["judges"] == 3 * 2 * EIGHT.parameters


def test_too_little_memory_is_an_error_and_too_little_free_a_warning():
    config = embedded()
    assert the(checks.check_memory(config, WORLD, Space(16 * GIB, 8 * GIB))).level == "ok"
    busy = the(checks.check_memory(config, WORLD, Space(16 * GIB, 2 * GIB)))
    assert busy.level == "warning"
    assert "2.0 GiB is available" in busy.text
    assert the(checks.check_memory(config, WORLD, Space(64 << 20, 64 << 20))).level == "error"


def test_a_micro_batch_is_no_larger_than_the_rank_s_share_of_an_update_and_no_smaller_than_one_prompt():
    settings = ("prompts.max_prompt_tokens=8", "sampling.max_new_tokens=4", "replay.prompts_per_update=6")
    pairs = [*settings, "learner.ranks=4"]  # two prompts on a rank, two rows of 12 tokens for each
    assert checks._tokens(embedded(*pairs, "learner.micro_batch_tokens=1000")) == 2 * 2 * 12
    assert checks._tokens(embedded(*pairs, "learner.micro_batch_tokens=40")) == 40
    assert checks._tokens(embedded(*pairs, "learner.micro_batch_tokens=1")) == 2 * 12
    games = load_config("embedded-nash-md", [*settings, "learner.micro_batch_tokens=1"])
    assert checks._tokens(games) == games.sampling.completions_per_prompt * 12


# Shared memory and disk


def test_shared_memory_holds_the_object_store_and_two_publications():
    config = embedded("cluster.object_store_mib=100", "publication.transport=shm")
    needed = (100 << 20) + 2 * 4 * WORLD_POLICY.parameters
    assert checks.check_shared_memory(config, WORLD, Space(GIB, needed)).level == "ok"
    assert checks.check_shared_memory(config, WORLD, Space(GIB, needed - 1)).level == "error"
    other = embedded("cluster.object_store_mib=100", "publication.transport=object_store")
    assert checks.check_shared_memory(other, WORLD, Space(GIB, 100 << 20)).level == "ok"


def test_an_object_store_too_small_for_two_publications_is_a_warning():
    # 2 x 4 x 1,331,904 bytes are 10.2 MiB.
    big = replace(WORLD_POLICY, parameters=WORLD_POLICY.parameters * 10)
    config = embedded("cluster.object_store_mib=100", "publication.transport=object_store")
    assert not list(checks.check_object_store(config, WORLD))
    finding = the(checks.check_object_store(config, Models(big, big)))
    assert finding.level == "warning"
    assert "cluster.object_store_mib to 102" in finding.remedy


def test_disk_is_compared_with_one_checkpoint_and_with_all():
    config = embedded("checkpoints.keep=2", "learner.zero_stage=1")
    psi = WORLD_POLICY.parameters
    one, run = 20 * psi, (3 * 20 + 4) * psi

    def level(free):
        return checks.check_disk(config, WORLD, Folder(Path("/runs"), True, Space(GIB, free))).level

    assert [level(run), level(run - 1), level(one), level(one - 1)] == ["ok", "warning", "warning", "error"]


def test_an_output_that_cannot_be_written_is_an_error():
    finding = checks.check_disk(embedded(), WORLD, Folder(Path("/proc"), False, Space(GIB, GIB)))
    assert finding.level == "error"
    assert "/proc cannot be written" in finding.text


# Ports and judges


def test_only_a_port_that_is_set_is_looked_at():
    assert not list(checks.check_port(None, False))
    assert the(checks.check_port(29500, True)).level == "ok"
    assert the(checks.check_port(29500, False)).level == "error"


def test_a_missing_key_is_an_error_here_and_a_warning_on_a_cluster_and_never_shown():
    config = embedded(ENDPOINT)
    secret = the(checks.check_keys(config, {"JUDGE_KEY": "s3cret"}, elsewhere=False))
    assert secret.level == "ok"
    assert "s3cret" not in str(secret)
    for environment in ({}, {"JUDGE_KEY": ""}):
        assert the(checks.check_keys(config, environment, elsewhere=False)).level == "error"
        assert the(checks.check_keys(config, environment, elsewhere=True)).level == "warning"
    assert not list(checks.check_keys(embedded(), {}, elsewhere=False))


def test_a_silent_server_is_a_warning():
    assert checks.check_endpoint("http://h:1", None).level == "ok"
    finding = checks.check_endpoint("http://h:1", "Connection refused")
    assert finding.level == "warning"
    assert "Connection refused" in finding.text


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("https://judge.test/v1", ("judge.test", 443)),
        ("http://judge.test", ("judge.test", 80)),
        ("http://[::1]:8000/v1", ("::1", 8000)),
    ],
)
def test_a_url_says_where_to_connect(url, where):
    assert checks.host_and_port(url) == where


def test_judges_behind_http_are_found_in_an_ensemble():
    members = f"[{{judge: {ENDPOINT.partition('=')[2]}}}, {{judge: {{kind: gold}}}}]"
    config = embedded(f"judging.judge={{kind: ensemble, members: {members}}}")
    assert [judge.model for judge in checks.http_judges(config)] == ["m"]
