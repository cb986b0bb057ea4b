"""Every preset on a Ray with pretended GPUs: all options of all actors are Ray's to accept, and places are as planned.

Only the classes inside the actors are replaced, by `Probe`. Ray counts pretended GPUs as it counts real ones.
"""

from __future__ import annotations

import itertools
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray._raylet import Config, PlacementGroupID
from ray.util.placement_group import PlacementGroup

from actors import remote
from actors.errors import UsageError
from launch.cluster import wiring
from launch.cluster.placement import GENERATOR, JUDGE, RANK, Node, plan
from launch.settings.loading import load_config, preset_names
from launch.settings.run import RunConfig
from learner.training import worker
from tests.fakes.probes import Probe

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.xdist_group("shared memory")]

GPU_MACHINES = {
    ("gpu-1", "gpu-1-lora", "gpu-1-80gb"): [Node(8.0, 1)],
    ("node-8gpu",): [Node(28.0, 8)],
    ("cluster-2node",): [Node(32.0, 8), Node(32.0, 8)],
}
ONE_HOST = ("node-8gpu",)
"""A variant of two hosts with as many GPUs each."""
GPU_PRESETS = {*itertools.chain(*GPU_MACHINES)}
OF_CPUS = tuple(sorted({*preset_names()} - GPU_PRESETS - {"embedded"}))
"""Those beside `embedded`."""
Where = tuple[str, tuple[int, ...]]


@contextmanager
def pretended(nodes: Sequence[Node], directory: Path, join: Any = None) -> Iterator[None]:
    """Join a Ray cluster of these nodes, all on this host; by `join` of its address if that is given."""
    from ray.cluster_utils import Cluster

    arguments: list[dict[str, Any]] = [
        {"num_cpus": int(node.cpus), "num_gpus": node.gpus, "resources": dict(node.custom), "labels": dict(node.labels)}
        for node in nodes
    ]
    arguments = [each | {"object_store_memory": 80 << 20} for each in arguments]
    head = arguments[0] | {"include_dashboard": False, "temp_dir": str(directory)}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for each in arguments[1:]:
            cluster.add_node(**each)
        if join is None:
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            yield
        else:
            with join(cluster.address):
                yield
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(autouse=True)
def probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "RemoteGenerator", Probe)
    monkeypatch.setattr(remote, "JudgeWorker", Probe)
    monkeypatch.setattr(worker, "LearnerWorker", Probe)
    monkeypatch.setattr(wiring, "_ends", lambda *_: (1,))  # there is no model to read
    # With the token, as every Ray of a process has it: a process that has met one keeps its way to ask who calls.
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    Config.initialize("")
    ensure_token_if_auth_enabled()
    monkeypatch.setenv("RAY_prestart_worker_first_driver", "0")  # as a run has it: no worker for each pretended core
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]))


def config_of(preset: str, *overrides: str) -> RunConfig:
    """The preset, with a path for whatever it asks for."""
    try:
        return load_config(preset, list(overrides))
    except UsageError as error:
        missing = re.findall(r"(\S+): missing; pass", str(error))
        return load_config(preset, [*overrides, *(f"{key}=/given" for key in missing)])


def start(config: RunConfig, directory: Path) -> dict[str, list[Where]]:
    """Start all actors as `offbeat train` does; return where those of each role are, and end them."""
    handles = actors_of(config, directory)
    found = {role: ray.get([actor.where.remote() for actor in actors], timeout=120) for role, actors in handles.items()}
    for actor in itertools.chain(*handles.values()):
        ray.kill(actor)
    for name, group in ray.util.placement_group_table().items():
        if group["state"] != "REMOVED":
            ray.util.remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(name)))
    deadline = time.monotonic() + 60
    while any(
        ray.available_resources().get(name, 0.0) < ray.cluster_resources()[name]
        for name in ("CPU", "GPU")
        if name in ray.cluster_resources()
    ):
        assert time.monotonic() < deadline, "Ray still holds what the actors had"
        time.sleep(0.1)
    return found


def actors_of(config: RunConfig, directory: Path) -> dict[str, list[Any]]:
    """Start all actors as `offbeat train` does."""
    wiring.check_resources(config)
    judges = wiring.start_judges(config, "/model")
    learner = wiring.start_learner(config, "/model", "/model", directory, directory / "failed")
    generators = wiring.start_generators(config, "/model", "/model", learner, judges)
    return {
        JUDGE: [judge._actor for judge in judges],
        RANK: list(learner._ranks),
        GENERATOR: [generator._actor for generator in generators],
    }


def planned(config: RunConfig, nodes: Sequence[Node]) -> dict[str, list[Any]]:
    places = plan(config, nodes)
    return {role: [each.cards for each in places if each.actor.role == role] for role in (JUDGE, RANK, GENERATOR)}


def together(places: dict[str, list[tuple[int, ...]]]) -> list[list[str]]:
    """The roles on each GPU, whatever its number: Ray may start the judge before the ranks or after them."""
    roles: dict[int, list[str]] = {}
    for role, taken in places.items():
        for card in itertools.chain(*taken):
            roles.setdefault(card, []).append(role)
    return sorted(sorted(each) for each in roles.values())


def test_presets_for_cpus_ask_ray_for_the_same_as_the_one_that_is_started() -> None:
    """One that asks for more must be started in every run of the tests."""
    nodes = [Node(16.0, 0)]

    def asked(preset: str) -> Any:
        config = config_of(preset)
        of_roles = [(each.environment, each.max_restarts) for each in (config.generators, config.judging)]
        return plan(config, nodes), config.publication.transport, of_roles, config.learner.environment

    assert OF_CPUS
    assert [preset for preset in OF_CPUS if asked(preset) != asked("embedded")] == []


@pytest.mark.parametrize("presets", [("embedded",), pytest.param(OF_CPUS, marks=pytest.mark.long)], ids=len)
def test_presets_for_cpus_start(presets: Sequence[str], short_dir: Path) -> None:
    with pretended([Node(16.0, 0)], short_dir):
        for preset in presets:
            config = config_of(preset)
            found = start(config, short_dir)
            assert {role: len(each) for role, each in found.items()} == {
                JUDGE: config.judging.count,
                RANK: config.learner.ranks,
                GENERATOR: config.generators.count,
            }
            assert {cards for each in found.values() for _, cards in each} == {()}


@pytest.mark.parametrize(
    "presets",
    [pytest.param(each, marks=pytest.mark.long) if each == ONE_HOST else each for each in GPU_MACHINES],
    ids=" ".join,
)
def test_every_preset_for_gpus_starts_on_the_machines_that_it_names(presets: Sequence[str], short_dir: Path) -> None:
    """Two of them had an option that Ray refuses, and no test had ever given it to Ray."""
    nodes, configs = GPU_MACHINES[tuple(presets)], {preset: config_of(preset) for preset in presets}
    with pretended(nodes, short_dir):
        places = {preset: start(config, short_dir) for preset, config in configs.items()}
    for preset, found in places.items():
        assert_placed(preset, configs[preset], nodes, found)


def assert_placed(preset: str, config: RunConfig, nodes: Sequence[Node], found: dict[str, list[Where]]) -> None:
    expected = planned(config, nodes)
    assert {role: len(each) for role, each in found.items()} == {role: len(each) for role, each in expected.items()}
    assert len({node for node, _ in found[RANK]}) == 1
    if preset.startswith("gpu-1"):
        assert {cards for each in found.values() for _, cards in each if cards} == {(0,)}
        assert all(cards for role in (RANK, GENERATOR) for _, cards in found[role])
    else:
        taken = Counter((node, card) for each in found.values() for node, cards in each for card in cards)
        assert len(taken) == sum(node.gpus for node in nodes)
        assert set(taken.values()) == {1}


def test_ranks_that_split_sequences_are_on_one_node(short_dir: Path) -> None:
    """Nodes hold three ranks and one: a group is on one node, the other is of what is left."""
    nodes = [Node(6.0, 0), Node(6.0, 0)]
    split = ("learner.ranks=4", "learner.sequence_parallel=2", "learner.cpus_per_rank=2", "generators.count=1")
    with pretended(nodes, short_dir):
        found = start(config_of("embedded", *split, "publication.transport=object_store"), short_dir)
    hosts = [node for node, _ in found[RANK]]
    pairs = [(hosts[first], hosts[first + 1]) for first in range(0, 4, 2)]
    assert sorted(Counter(hosts).values()) == [1, 3]
    assert [left == right for left, right in pairs] == [True, False]


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(
            ["learner.gpus_per_rank=0.6", "learner.ranks=3", "generators.gpus=0.4", "generators.count=4"],
            marks=pytest.mark.long,
        ),
        ["publication.transport=ipc", "generators.gpus=0.2", "generators.count=2", "judging.judge.gpus=1"],
    ],
    ids=["several on each of four GPUs", "all on the learner's GPU, for ipc"],
)
def test_ray_shares_gpus_out_as_planned(overrides: list[str], short_dir: Path) -> None:
    nodes = [Node(16.0, 4)]
    config = config_of("gpu-1", "generators.cpus=1", "learner.cpus_per_rank=1", *overrides)
    with pretended(nodes, short_dir):
        found = start(config, short_dir)
    given = {role: [cards for _, cards in places] for role, places in found.items()}
    assert together(given) == together(planned(config, nodes))
    if config.publication.transport == "ipc":
        assert {*given[RANK], *given[GENERATOR]} == {given[RANK][0]}


def test_variables_resources_and_labels_of_a_role_reach_its_workers_alone(short_dir: Path) -> None:
    """Two racks hold two generators, `home` the learner; labels take the judge there. Each role has its own network."""
    nodes = [Node(8.0, 0, {"home": 1.0}), Node(8.0, 0, {"rack": 2.0}, {"zone": "b"})]
    nodes.append(Node(8.0, 0, {"home": 1.0}, {"zone": "c"}))
    config = config_of(
        "embedded",
        "publication.transport=object_store",
        "generators.count=2",
        "generators.resources={rack: 1}",
        "learner.resources={home: 0.5}",
        "learner.labels={zone: c}",
        "judging.labels={zone: 'in(c, d)', other: '!there'}",
        "generators.environment.NCCL_SOCKET_IFNAME=eth1",
        "learner.environment.NCCL_SOCKET_IFNAME=eth2",
        "judging.environment={NCCL_SOCKET_IFNAME: eth3, ONLY_OF_JUDGES: '1'}",
    )
    with pretended(nodes, short_dir):
        at = {node["Labels"].get("zone"): node["NodeID"] for node in ray.nodes()}
        handles = actors_of(config, short_dir)

        def ask(call: str, *arguments: str) -> dict[str, list[Any]]:
            return {
                role: ray.get([getattr(actor, call).remote(*arguments) for actor in actors], timeout=120)
                for role, actors in handles.items()
            }

        assert ask("variable", "NCCL_SOCKET_IFNAME") == {JUDGE: ["eth3"], RANK: ["eth2"], GENERATOR: ["eth1"] * 2}
        assert ask("variable", "ONLY_OF_JUDGES") == {JUDGE: ["1"], RANK: [None], GENERATOR: [None] * 2}
        where = ask("where")
        assert {node for node, _ in where[GENERATOR]} == {at["b"]}
        assert [node for node, _ in where[RANK]] == [at["c"]], "not on the first node with its resource"
        assert [node for node, _ in where[JUDGE]] == [at["c"]]
        with pytest.raises(UsageError, match=r"learner rank 1 of 1 needs 1 CPUs and a node with zone=z.*zone=unset"):
            wiring.check_resources(config_of("embedded", "learner.labels={zone: z}"))
        with pytest.raises(
            UsageError, match=r"needs 3 of the resource rack and Ray has 2; start a node with `ray start"
        ):
            wiring.check_resources(config_of("embedded", "generators.count=3", "generators.resources={rack: 1}"))


def test_code_of_the_runtime_environment_reaches_the_workers_of_a_joined_cluster(
    short_dir: Path, tmp_path: Path
) -> None:
    """The role's variables stay: Ray merges what a worker is started with into what the whole run has."""
    module = tmp_path / "passed_on_code"
    module.mkdir()
    (module / "__init__.py").write_text("VALUE = 42")
    config = config_of("embedded", f"cluster.runtime_env.py_modules=[{module}]", "judging.environment.GIVEN=yes")

    def join(address: str) -> Any:
        return wiring.ray_session(config.cluster.model_copy(update={"address": address}))

    with pretended([Node(8.0, 0)], short_dir, join):
        handles = actors_of(config, short_dir)
        (judge,) = handles[JUDGE]
        assert ray.get(judge.variable.remote("GIVEN"), timeout=120) == "yes"
        actors = [*itertools.chain(*handles.values())]
        assert ray.get([actor.value.remote("passed_on_code") for actor in actors], timeout=120) == [42] * len(actors)
