"""What is checked and decided before Ray starts an actor. No Ray is started."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from actors import remote
from actors.errors import RunError, UsageError
from actors.generation.config import GeneratorSpec
from launch.cluster import wiring
from launch.settings.run import ClusterConfig, RunConfig
from tests.settings import nested


def _config(**settings: Any) -> RunConfig:
    return RunConfig.model_validate({"model": {"path": "m"}, **settings})


def test_the_judge_s_gpus_count_when_resources_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge without room for its GPU was waited for, for ever and silently."""
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 2.0})
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8, "GPU": 2}}])
    learner = {"gpus_per_rank": 1}
    publication = {"transport": "nccl"}
    wiring.check_resources(_config(learner=learner, publication=publication))
    judge = {"judge": {"kind": "reward_model", "path": "rm", "gpus": 1}}
    with pytest.raises(UsageError, match=r"needs 3 GPUs.*1 judge.*Ray has 2"):
        wiring.check_resources(_config(learner=learner, judging=judge, publication=publication))


def test_a_task_on_all_cores_fits_one_node_of_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for the cores of all nodes together was a task that no node could ever start."""
    asked: list[Any] = []
    nodes = [("dead", 64, False), ("large", 8, True), ("small", 4, True)]
    monkeypatch.setattr(
        ray, "nodes", lambda: [{"NodeID": n, "Resources": {"CPU": c}, "Alive": alive} for n, c, alive in nodes]
    )
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 12.0})

    class Task:
        def options(self, **options: Any) -> Task:
            asked.append(options["num_cpus"])
            return self

        def remote(self, **keywords: Any) -> Any:
            return keywords["threads"]

    monkeypatch.setattr(ray, "remote", lambda function: Task())
    monkeypatch.setattr(ray, "get", lambda reference: reference)
    for given, threads in (("", 8), ("3", 3), ("16", 8), ("0", 8), ("4,2", 8)):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert wiring.run_on_all_cores(print) == threads
    assert asked == [8] * 5


@pytest.mark.parametrize(("loss", "kind"), [("nash_pg", "mixture"), ("dpo", None)])
def test_generators_are_given_the_reference_and_the_opponent_that_the_loss_has(
    loss: str, kind: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[GeneratorSpec] = []
    monkeypatch.setattr(remote, "start_generator", lambda spec, place: given.append(spec))
    opponent = {"kind": "mixture", "beta": 0.5} if loss == "nash_pg" else {}
    config = _config(**nested({"learner": {"loss": {"kind": loss}}, "opponent": opponent}))
    (generator,) = wiring.start_generators(config, "start", "reference")
    (spec,) = given
    assert generator.name == spec.name == "generator-0"
    assert (spec.model_dir, spec.reference_dir) == ("start", "reference")
    assert (spec.opponent and spec.opponent.kind) == kind
    assert bool(spec.opponent and spec.opponent.sampled) == (loss == "nash_pg")


def test_a_resumed_run_s_engines_never_draw_the_numbers_of_its_first_start_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[GeneratorSpec] = []
    monkeypatch.setattr(remote, "start_generator", lambda spec, place: given.append(spec))
    config = _config(generators={"count": 2}, seed=7)
    wiring.start_generators(config, "start", "reference")
    wiring.start_generators(config, "start", "reference", updates=5)
    assert [(spec.seed, spec.number, spec.start) for spec in given] == [(7, 0, 0), (7, 1, 0), (7, 0, 5), (7, 1, 5)]


class _Actors:
    """Stands for `ray.remote(cls)`: keeps the options and arguments of every actor that is started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.options_given: list[dict[str, Any]] = []
        self.arguments: list[tuple[Any, ...]] = []
        monkeypatch.setattr(ray, "remote", lambda cls: self)

    def options(self, **given: Any) -> _Actors:
        self.options_given.append(given)
        return self

    def remote(self, *arguments: Any, **_: Any) -> None:
        self.arguments.append(arguments)


class _Loading:
    """A learner or judge whose reference to its loading is its name."""

    host = "10.0.0.1"

    def __init__(self, name: str) -> None:
        self.name = name

    def loaded(self) -> list[str]:
        return [self.name]


@pytest.mark.parametrize(("address", "kept"), [("127.0.0.1", True), ("10.0.0.1", False)])
def test_actors_keep_to_loopback_where_ray_does(address: str, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: address)
    actors = _Actors(monkeypatch)
    wiring.start_generators(_config(), "start", "reference")
    wiring.start_judges(_config(), "start")
    environments = [options["runtime_env"]["env_vars"] for options in actors.options_given]
    assert [each.get("GLOO_SOCKET_IFNAME") for each in environments] == ["lo" if kept else None] * 2


@pytest.mark.parametrize(("transport", "resources"), [("object_store", {}), ("shm", {"node:10.0.0.1": 0.001})])
def test_generators_that_read_shared_memory_are_never_started_on_another_host(
    transport: str, resources: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a host that joined the run later they found no publication, and refused it."""
    actors = _Actors(monkeypatch)
    config = _config(generators={"count": 2}, publication={"transport": transport})
    wiring.start_generators(config, "start", "reference", _Loading("learner"))  # type: ignore[arg-type]
    assert [each["resources"] for each in actors.options_given] == [resources] * 2


@pytest.mark.parametrize(("gpus", "after"), [(0.25, ("learner", "judge")), (1.0, ())])
def test_an_engine_that_may_share_a_gpu_starts_when_the_others_have_loaded(
    gpus: float, after: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM takes what others load while it measures for its own, and gets less cache, or none."""
    actors = _Actors(monkeypatch)
    config = _config(generators={"count": 2, "gpus": gpus}, learner={"gpus_per_rank": 0.5})
    others: Any = _Loading("learner"), [_Loading("judge")]
    wiring.start_generators(config, "start", "reference", *others)
    assert [each["num_gpus"] for each in actors.options_given] == [gpus] * 2
    assert [each[1:] for each in actors.arguments] == [after] * 2


def test_a_ray_that_does_not_start_in_time_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray raises a bare `Exception` then, which ended as an unexpected error."""

    def init(**_: Any) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(RunError, match=r"Ray could not be started: The current node timed out during startup; "),
        wiring.ray_session(ClusterConfig(address="local")),
    ):
        pass


@pytest.mark.parametrize(("address", "interval"), [("local", "0"), ("head:6379", None)])
def test_a_ray_started_here_keeps_no_record_of_past_calls_and_a_joined_one_its_own_way(
    address: str, interval: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GCS of a run grew by 31 MB in 1,000 updates."""
    name = "RAY_task_events_report_interval_ms"
    monkeypatch.setattr(wiring.os, "environ", {})
    monkeypatch.setattr(wiring, "_check_answers", lambda address: None)
    monkeypatch.setattr(wiring.security_warnings, "keep_token_private", lambda home: None)
    told: list[str | None] = []
    monkeypatch.setattr(ray, "init", lambda **settings: told.append(wiring.os.environ.get(name)))
    monkeypatch.setattr(ray, "shutdown", lambda: None)

    with wiring.ray_session(ClusterConfig(address=address)):
        pass

    assert told == [interval]


def test_variables_and_resources_of_a_role_are_those_of_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """They come after those that keep a run on one host to loopback; what Offbeat needs stays beside them."""
    actors = _Actors(monkeypatch)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    config = _config(
        generators={"environment": {"NCCL_SOCKET_IFNAME": "eth0", "VLLM_LOGGING_LEVEL": "INFO"}, "resources": {"a": 1}},
        judging={"environment": {"HF_HOME": "/hub"}, "resources": {"b": 2}},
        publication={"transport": "shm"},
    )
    wiring.start_generators(config, "start", "reference", _Loading("learner"))  # type: ignore[arg-type]
    wiring.start_judges(config, "start")
    generator, judge = ((each["runtime_env"]["env_vars"], each["resources"]) for each in actors.options_given)
    assert generator[1] == {"a": 1.0, "node:10.0.0.1": 0.001}
    assert judge[1] == {"b": 2.0}
    assert (generator[0]["NCCL_SOCKET_IFNAME"], judge[0]["NCCL_SOCKET_IFNAME"]) == ("eth0", "lo")
    assert generator[0]["VLLM_LOGGING_LEVEL"] == "INFO"
    assert generator[0]["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert (judge[0]["HF_HOME"], generator[0].get("HF_HOME")) == ("/hub", None)


def test_a_resource_that_ray_has_too_little_of_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "rack": 1.0})
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0, "rack": 1.0}}])
    wiring.check_sampling_resources(_config(generators={"resources": {"rack": 1}}))
    said = (
        r"needs 2 of the resource rack and Ray has 1; start a node with `ray start --resources='\{\"rack\": 2\}'` and"
    )
    with pytest.raises(UsageError, match=said):
        wiring.check_sampling_resources(_config(generators={"resources": {"rack": 1}, "count": 2}))


@pytest.mark.parametrize(
    ("address", "given", "said"),
    [
        (
            "auto",
            {"working_dir": "."},
            r"runtime_env\.working_dir takes code to the hosts.* set cluster\.address to HOST",
        ),
        ("head:6379", {"pip": 5}, r"Ray refuses cluster\.runtime_env: .*pip.*; correct the key"),
        ("head:6379", {"image_uri": "a", "pip": ["b"]}, r"Ray refuses cluster\.runtime_env: .*image_uri"),
    ],
)
def test_a_runtime_environment_that_ray_cannot_have_is_refused_before_it_starts(
    address: str, given: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(wiring, "_init", lambda *_: pytest.fail("Ray was started"))
    with (
        pytest.raises(UsageError, match=said),
        wiring.ray_session(ClusterConfig(address=address, runtime_env=given)),
    ):
        pass


@pytest.mark.parametrize(
    ("address", "given"), [("local", {"pip": ["a"]}), ("head:6379", {"py_modules": ["s3://a/b.zip"]})]
)
def test_the_runtime_environment_is_the_whole_run_s(
    address: str, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    monkeypatch.setattr(wiring, "_check_answers", lambda address: None)
    monkeypatch.setattr(wiring.security_warnings, "keep_token_private", lambda home: None)
    monkeypatch.setattr(ray, "init", lambda **settings: started.append(settings["runtime_env"]))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    for environment in (given, {}):
        with wiring.ray_session(ClusterConfig(address=address, runtime_env=environment)):
            pass
    assert started == [given, None]
