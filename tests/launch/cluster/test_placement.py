"""What a run reserves and where it goes, before there is a Ray to ask."""

from __future__ import annotations

from typing import Any

import pytest

from actors.errors import UsageError
from launch.cluster import placement
from launch.cluster.placement import (
    GENERATOR,
    JUDGE,
    RANK,
    REFERENCE,
    Actor,
    Node,
    address_to_join,
    place,
    plan,
    run_actors,
)
from launch.settings.loading import load_config
from launch.settings.run import ClusterConfig, RunConfig

PASSED = ["model.path=/m", "prompts.source=/p.jsonl", "judging.judge.path=/rm"]
ONE_CARD = ["learner.gpus_per_rank=0.5", "generators.gpus=0.25"]


def needed(config: RunConfig) -> dict[str, float]:
    return placement.resources_needed(run_actors(config))


def cards(places: Any, role: str) -> list[tuple[int, tuple[int, ...]]]:
    return [(each.node, each.cards) for each in places if each.actor.role == role]


def test_a_gpu_run_reserves_for_generators_ranks_and_judge() -> None:
    # 3 generators and 4 ranks with 4 cores each; a GPU for each of them and one for the judge.
    assert needed(load_config("node-8gpu", PASSED)) == {"CPU": 28.0, "GPU": 8.0}
    split = [*PASSED, "generators.tensor_parallel_size=2", "judging.judge.gpus=0.5", "judging.count=3"]
    assert needed(load_config("node-8gpu", split)) == {"CPU": 28.0, "GPU": 3 * 2 + 4 + 1.5}


def test_generators_on_part_of_a_gpu_reserve_that_part() -> None:
    """Whole GPUs were reserved for them whatever was asked, so one card was never enough for a run."""
    shm = [*PASSED, "publication.transport=shm"]
    assert needed(load_config("node-8gpu", [*shm, "generators.gpus=0.25", "learner.ranks=1"]))["GPU"] == 0.75 + 1 + 1


def test_ranks_that_split_sequences_are_on_one_node_if_it_has_room_for_them() -> None:
    """By hand. Without a split the order stays; rests of nodes come last."""
    assert placement.in_groups(["a", "b", "a", "b"], 1) == [0, 1, 2, 3]
    assert placement.in_groups(["a", "b", "a", "b"], 2) == [0, 2, 1, 3]
    assert placement.in_groups(["b", "a", "a", "a", "b", "b"], 2) == [0, 4, 1, 2, 5, 3]
    assert placement.in_groups(["a", "b", "c", "b"], 4) == [0, 1, 3, 2]


def test_a_cpu_run_reserves_no_gpus() -> None:
    config = load_config("embedded", ["generators.count=3", "learner.ranks=2", "learner.cpus_per_rank=0.5"])
    assert needed(config) == {"CPU": 4.0, "GPU": 0.0}


def test_reference_actors_reserve_what_their_section_says_and_go_where_it_says() -> None:
    given = "reference={count: 2, cpus: 0.5, gpus: 0.25, resources: {rack: 1}, labels: {zone: b}}"
    config = load_config("node-8gpu", [*PASSED, given])
    assert needed(config) == {"CPU": 29.0, "GPU": 8.5, "rack": 2.0}
    places = plan(config, [Node(28.0, 8), Node(1.0, 1, {"rack": 2.0}, {"zone": "b"})])
    assert cards(places, REFERENCE) == [(1, (0,))] * 2
    with pytest.raises(UsageError, match=r"reference actor 2 of 2 needs .*; lower reference\.count, reference\.cpus"):
        plan(config, [Node(28.0, 8), Node(1.0, 1, {"rack": 1.0}, {"zone": "b"})])
    assert needed(load_config("node-8gpu", PASSED)) == {"CPU": 28.0, "GPU": 8.0}


def test_generators_that_may_come_later_reserve_nothing_at_the_start() -> None:
    config = load_config("embedded", ["generators.count=3", "generators.min_count=1", "learner.ranks=2"])
    assert needed(config) == {"CPU": 3.0, "GPU": 0.0}


def test_the_presets_are_placed_on_the_machines_that_they_name() -> None:
    one = plan(load_config("gpu-1", PASSED), [Node(8.0, 1)])
    assert [cards(one, role) for role in (JUDGE, RANK, GENERATOR)] == [[(0, (0,))]] * 3
    assert placement.describe(one) == "1 judge, 1 learner rank and 1 generator share GPU 0"
    node = plan(load_config("node-8gpu", PASSED), [Node(28.0, 8)])
    assert sorted(card for each in node for card in each.cards) == list(range(8))
    assert placement.describe(node) == ""
    # Two hosts: the judge on the first, so all eight ranks on the second, and the generators beside the judge.
    two = plan(load_config("cluster-2node", PASSED), [Node(32.0, 8), Node(32.0, 8)])
    assert cards(two, JUDGE) == [(0, (0,))]
    assert cards(two, RANK) == [(1, (card,)) for card in range(8)]
    assert cards(two, GENERATOR) == [(0, (card,)) for card in range(1, 8)]


def test_a_share_goes_to_the_fullest_gpu_with_room_and_whole_gpus_to_free_ones() -> None:
    """By hand: 0.5 opens GPU 0, 0.6 does not fit there and opens GPU 1, 0.4 fits best on GPU 1, 0.5 on GPU 0."""
    actors = [Actor(GENERATOR, 0.0, gpus) for gpus in (0.5, 0.6, 0.4, 0.5, 2.0)]
    assert [each.cards for each in place(actors, [Node(0.0, 4)])] == [(0,), (1,), (1,), (0,), (2, 3)]


def test_shares_that_fit_in_sum_and_not_on_cards_are_refused() -> None:
    """3 x 0.6 are less than 2 GPUs, and each needs one of its own: the third waited forever."""
    three = [Actor(GENERATOR, 1.0, 0.6)] * 3
    with pytest.raises(UsageError, match=r"generator 3 of 3 needs 1 CPUs and 0.6 of one GPU.*0.4 of GPU 0, 0.4 of GPU"):
        place(three, [Node(8.0, 2)])


@pytest.mark.parametrize(
    ("nodes", "size", "fits"),
    [([Node(9.0, 5)], 4, True), ([Node(9.0, 4), Node(9.0, 4)], 4, True), ([Node(9.0, 3), Node(9.0, 3)], 4, False)],
)
def test_the_workers_of_an_engine_stay_on_one_node(nodes: list[Node], size: int, fits: bool) -> None:
    changed = [
        "generators.count=1",
        f"generators.tensor_parallel_size={size}",
        "learner.ranks=1",
        "judging.judge.gpus=0",
    ]
    config = load_config("node-8gpu", [*PASSED, *changed, "publication.transport=object_store"])
    if fits:
        plan(config, nodes)
    else:
        with pytest.raises(UsageError, match=r"4 free GPUs of one node.*generators.tensor_parallel_size"):
            plan(config, nodes)


def test_ipc_keeps_generator_and_learner_on_one_gpu_of_one_host() -> None:
    ipc = [*PASSED, "publication.transport=ipc", *ONE_CARD]
    config = load_config("gpu-1", [*ipc, "generators.count=2", "judging.judge.gpus=1", "generators.cpus=1"])
    places = plan(config, [Node(8.0, 1), Node(8.0, 1)])
    assert cards(places, JUDGE) == [(0, (0,))]
    assert cards(places, RANK) + cards(places, GENERATOR) == [(1, (0,))] * 3
    crowded = load_config("gpu-1", [*ipc, "judging.judge.gpus=0.5"])
    with pytest.raises(UsageError, match=r"ipc needs.*1 generator on another one; .*judging.judge.gpus 1 or 0"):
        plan(crowded, [Node(8.0, 2)])
    with pytest.raises(UsageError, match="generator 1 of 1"):
        plan(load_config("gpu-1", [*ipc, "generators.cpus=5"]), [Node(8.0, 1), Node(8.0, 1)])


def test_ranks_fill_one_node_if_it_holds_them_and_several_if_none_does() -> None:
    ranks = [Actor(RANK, 1.0, 1.0)] * 4
    assert [each.node for each in place(ranks, [Node(9.0, 2), Node(9.0, 4)])] == [1] * 4
    assert [each.node for each in place(ranks, [Node(9.0, 2), Node(9.0, 2)])] == [0, 0, 1, 1]


def test_what_is_reserved_is_what_ray_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check with Ray's own figures accepts exactly what is told here, and no less."""
    from launch.cluster import wiring

    config = load_config("node-8gpu", PASSED)
    wanted = needed(config)

    def have(**less: float) -> None:
        resources = {name: amount - less.get(name, 0.0) for name, amount in wanted.items()}
        monkeypatch.setattr(wiring.ray, "cluster_resources", lambda: resources)
        node = {"Alive": True, "Resources": resources, "NodeManagerAddress": "10.0.0.1"}
        monkeypatch.setattr(wiring.ray, "nodes", lambda: [node])

    have()
    wiring.check_resources(config)
    for resource in wanted:
        have(**{resource: 0.5})
        with pytest.raises(UsageError, match=f"{resource}s"):
            wiring.check_resources(config)


def test_a_custom_resource_places_an_actor_on_a_node_that_has_it_left() -> None:
    """By hand: two of three units are taken on node 1, and 1.5 do not fit beside them; node 2 has 2."""
    nodes = [Node(8.0, 0), Node(8.0, 0, {"rack": 3.0}), Node(8.0, 0, {"rack": 2.0})]
    actors = [Actor(GENERATOR, 1.0, 0.0, {"rack": amount}) for amount in (2.0, 1.5)]
    assert [each.node for each in place([*actors, Actor(JUDGE, 0.0, 0.0)], nodes)] == [1, 2, 0]
    with pytest.raises(
        UsageError, match=r"generator 3 of 3 needs 1 CPUs and 1.5 rack.*node 1: 7 CPUs, 1 rack; node 2: "
    ):
        place([*actors, actors[1]], nodes)


def test_labels_place_an_actor_on_a_node_that_has_them() -> None:
    nodes = [Node(8.0, 0), Node(8.0, 0, labels={"gpu": "A100"}), Node(8.0, 0, labels={"gpu": "H100", "zone": "b"})]
    selectors = ({"gpu": "H100"}, {"gpu": "in(A100, L4)"}, {"gpu": "!in(A100, L4)", "zone": "b"}, {"zone": "!b"})
    actors = [Actor(GENERATOR, 1.0, 0.0, labels=selector) for selector in selectors]
    assert [each.node for each in place(actors, nodes)] == [2, 1, 2, 0]
    with pytest.raises(UsageError, match=r"1 of 1 needs 1 CPUs and a node with zone=c.*node 2: 8 CPUs, zone=b\)"):
        place([Actor(GENERATOR, 1.0, 0.0, labels={"zone": "c"})], nodes)


def test_ranks_go_to_the_nodes_that_have_their_labels() -> None:
    nodes = [Node(8.0, 0), Node(8.0, 0, labels={"gpu": "H100"})]
    assert [each.node for each in place([Actor(RANK, 1.0, 0.0, labels={"gpu": "H100"})] * 2, nodes)] == [1, 1]


def test_ranks_with_a_custom_resource_go_to_the_node_that_has_it_for_all() -> None:
    nodes = [Node(8.0, 0, {"rack": 1.0}), Node(8.0, 0, {"rack": 2.0})]
    ranks = [Actor(RANK, 1.0, 0.0, {"rack": 1.0})] * 2
    assert [each.node for each in place(ranks, nodes)] == [1, 1]


def test_custom_resources_of_all_roles_are_summed() -> None:
    config = load_config(
        "embedded",
        [
            "generators.count=2",
            "generators.resources={rack: 0.1, a: 1}",
            "learner.resources={rack: 1}",
            "judging.resources={rack: 2}",
        ],
    )
    wanted = needed(config)
    assert (wanted["rack"], wanted["a"]) == (3.2, 2.0)


def test_auto_joins_the_cluster_of_the_job_and_local_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert address_to_join(ClusterConfig(address="auto")) == "10.0.0.1:6379"
    assert address_to_join(ClusterConfig(address="local")) is None
    assert address_to_join(ClusterConfig(address="10.0.0.2:6379")) == "10.0.0.2:6379"
    monkeypatch.delenv("RAY_ADDRESS")
    assert address_to_join(ClusterConfig(address="auto")) is None
