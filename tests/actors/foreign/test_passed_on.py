"""What settings pass on to other programs: names and values that may be given, and what a refusal says."""

from __future__ import annotations

from typing import Any

import pytest
from ray._private.label_utils import validate_label_selector

from actors.foreign.passed_on import check_name, checked_environment, checked_labels, checked_resources, meets

KEY = "hf_" + "aB3dE5fG7hJ9kL1mN2pQ"


def test_variables_are_passed_on_as_they_are() -> None:
    given = {"NCCL_SOCKET_IFNAME": "eth0", "NCCL_IB_DISABLE": "1", "_x": ""}
    assert checked_environment(given, {}) == given
    assert checked_environment(None, {}) == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"1ST": "a"}, "'1ST' is not the name of an environment variable; allowed are letters, digits and _"),
        ({"A=B": "a"}, "'A=B' is not the name"),
        ({7: "a"}, "7 is not the name"),
        ({"NCCL_IB_DISABLE": 1}, "NCCL_IB_DISABLE is 1, which YAML reads as no text; put the value in quotes"),
        ({"A": True}, "A is True, which YAML reads as no text"),
        ({"A": "a\0b"}, "A holds a zero byte"),
        ({"PYTHONPATH": "/x"}, "PYTHONPATH cannot be set here: Offbeat sets it, .*; set it where the run starts"),
        ({"CUDA_VISIBLE_DEVICES": "0"}, "CUDA_VISIBLE_DEVICES cannot be set here: Ray sets it"),
        ({"RAY_BACKEND_LOG_LEVEL": "debug"}, "RAY_BACKEND_LOG_LEVEL cannot be set here: .* `ray start`"),
        ({"RANK": "0"}, "RANK cannot be set here: it is mine"),
    ],
)
def test_a_variable_that_cannot_be_passed_on_is_refused_with_the_reason(given: dict[Any, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        checked_environment(given, {"RANK": "it is mine"})


@pytest.mark.parametrize("name", ["HF_TOKEN", "WANDB_API_KEY", "SOMETHING"])
def test_a_key_is_refused_and_not_shown(name: str) -> None:
    with pytest.raises(ValueError, match=f"must hold no secret, and {name} looks like one.*export it where") as raised:
        checked_environment({name: KEY}, {})
    assert KEY not in str(raised.value)


def test_amounts_of_resources_are_numbers_from_the_smallest_on() -> None:
    assert checked_resources({"rack": 1, "node:10.0.0.1": 0.0001}) == {"rack": 1.0, "node:10.0.0.1": 0.0001}
    assert checked_resources(None) == {}
    for wrong in (0, -1.0, 0.00001, True, "1", float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"rack is .*; allowed is an amount of 0.0001 or more"):
            checked_resources({"rack": wrong})


@pytest.mark.parametrize("value", ["H100", "!H100", "in(H100, H200)", "!in(a,b)", "1.0_x-2"])
def test_a_label_selector_is_passed_on_as_it_is(value: str) -> None:
    given = {"gpu": value, "ray.io/node-type": "a"}
    assert checked_labels(given) == given
    assert validate_label_selector(given) is None, "Ray takes it"


@pytest.mark.parametrize("value", ["", "a b", "in()", "in(a b)", "not(a)", "!!a", "-a", 5, None, "a" * 64])
def test_what_is_no_label_selector_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"gpu is .*; allowed is the text of a value such as H100, or one of `!H100`"):
        checked_labels({"gpu": value})
    with pytest.raises(ValueError, match="'g p' is not the name of a label; write the one given to `ray start"):
        checked_labels({"g p": "a"})


def test_labels_meet_a_selector_by_hand() -> None:
    labels = {"gpu": "H100", "zone": "b"}
    met = [{}, {"gpu": "H100"}, {"gpu": "in(A, H100)", "zone": "!a"}, {"zone": "!in(a, c)"}, {"other": "!x"}]
    unmet = [{"gpu": "H10"}, {"gpu": "!H100"}, {"zone": "in(a, c)"}, {"zone": "!in(a, b)"}, {"other": "x"}]
    assert all(meets(labels, selector) for selector in met)
    assert not any(meets(labels, selector) for selector in unmet)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("CPU", "generators.cpus or learner.cpus_per_rank"),
        ("GPU", "learner.gpus_per_rank"),
        ("memory", "leave it out"),
        ("", "'' is not the name of a resource"),
        (" a", "' a' is not the name of a resource"),
    ],
)
def test_a_resource_that_has_a_setting_of_its_own_or_no_name_is_refused(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        checked_resources({name: 1})


def test_an_unknown_name_is_refused_with_the_nearest_one_even_if_that_is_refused_too() -> None:
    check_name("block_size", {"block_size"}, {}, "arguments")
    with pytest.raises(ValueError, match="blok_size is not one of arguments; nearest: block_size"):
        check_name("blok_size", {"block_size"}, {}, "arguments")
    with pytest.raises(ValueError, match="dtipe is not one of arguments; nearest: dtype"):
        check_name("dtipe", {"block_size"}, {"dtype": "set another"}, "arguments")
    with pytest.raises(ValueError, match="zzz is not one of arguments; remove it"):
        check_name("zzz", {"block_size"}, {}, "arguments")
    with pytest.raises(ValueError, match="dtype cannot be set here: set another"):
        check_name("dtype", {"block_size"}, {"dtype": "set another"}, "arguments")
