"""Check the values that settings pass on to other programs: environment variables, Ray's resources, named arguments.

Refuses unknown names, names that Offbeat owns, and secrets: a configuration is saved with its run. Imports little.
"""

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Any

from actors.redaction import secret_names

SMALLEST_AMOUNT = 0.0001
"""Smallest amount of a resource that Ray can reserve."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OF_EVERY_ROLE = {
    "PYTHONPATH": "Offbeat sets it, so that workers import what the run does; set it where the run starts",
    "CUDA_VISIBLE_DEVICES": "Ray sets it to the GPUs that it gives a worker; set the role's share of GPUs",
}
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
_LABEL_NAME = re.compile(rf"(?:[a-zA-Z0-9.-]{{1,253}}/)?{_LABEL}")
_LABEL_CONDITION = re.compile(rf"!?(?:{_LABEL}|in\({_LABEL}(?:, ?{_LABEL})*\))")
_RAYS_OWN = "Ray reads it before a worker is there; set it where `ray start` runs, or where the run starts its own Ray"
_OF_RAY = {
    "CPU": "set the role's cores: generators.cpus or learner.cpus_per_rank",
    "GPU": "set the role's share: generators.gpus, learner.gpus_per_rank or judging.judge.gpus",
    "memory": "a run reserves no memory from Ray; leave it out",
    "object_store_memory": "a run reserves no memory from Ray; leave it out",
}


def checked_environment(given: Any, owned: Mapping[str, str]) -> Any:
    """Return the environment variables of one role. `owned`: names that Offbeat sets, with the reason to refuse each.

    Raises ValueError for an invalid or owned name, a value that is no text, and a secret.
    """
    if not isinstance(given, Mapping):
        return {} if given is None else given
    reasons = _OF_EVERY_ROLE | dict(owned)
    for name, value in given.items():
        if not isinstance(name, str) or not _VARIABLE.fullmatch(name):
            raise ValueError(
                f"{name!r} is not the name of an environment variable; allowed are letters, digits and _, no digit "
                "first; correct it"
            )
        if name in reasons or name.startswith("RAY_"):
            raise ValueError(f"{name} cannot be set here: {reasons.get(name, _RAYS_OWN)}")
        if not isinstance(value, str):
            raise ValueError(f"{name} is {value!r}, which YAML reads as no text; put the value in quotes")
        if "\0" in value:
            raise ValueError(f"{name} holds a zero byte, which no environment variable can; remove it")
    refuse_secrets(given, "export it where Ray's nodes are started, or the run if it starts Ray, and workers have it")
    return dict(given)


def checked_resources(given: Any) -> Any:
    """Return amounts of Ray's custom resources. Raises ValueError for Ray's own resources, and for refused amounts."""
    if not isinstance(given, Mapping):
        return {} if given is None else given
    for name, amount in given.items():
        if not isinstance(name, str) or not name or name != name.strip():
            raise ValueError(f"{name!r} is not the name of a resource; write the one given to `ray start --resources`")
        if name in _OF_RAY:
            raise ValueError(f"{name} is one of Ray's own resources: {_OF_RAY[name]}")
        number = isinstance(amount, int | float) and not isinstance(amount, bool)
        if not number or not SMALLEST_AMOUNT <= amount < float("inf"):
            raise ValueError(
                f"{name} is {amount!r}; allowed is an amount of {SMALLEST_AMOUNT:g} or more, the smallest that Ray can "
                "reserve; correct it"
            )
    return {name: float(amount) for name, amount in given.items()}


def checked_labels(given: Any) -> Any:
    """Return Ray's label selector: names of labels, with values or conditions. Raises ValueError for other forms."""
    if not isinstance(given, Mapping):
        return {} if given is None else given
    for name, value in given.items():
        if not isinstance(name, str) or not _LABEL_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of a label; write the one given to `ray start --labels`")
        if not isinstance(value, str) or not _LABEL_CONDITION.fullmatch(value):
            raise ValueError(
                f"{name} is {value!r}; allowed is the text of a value such as H100, or one of `!H100`, "
                "`in(H100, H200)` and `!in(H100, H200)`; correct it"
            )
    return dict(given)


def meets(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Return whether a node with `labels` meets Ray's label selector. A missing label has no value."""
    return all((labels.get(name) in _values(value)) != value.startswith("!") for name, value in selector.items())


def _values(condition: str) -> list[str]:
    listed = condition.removeprefix("!")
    return listed[3:-1].replace(" ", "").split(",") if listed.startswith("in(") else [listed]


def check_name(name: Any, allowed: Collection[str], refused: Mapping[str, str], owner: str) -> None:
    """Raise ValueError unless `name` is allowed: with the reason if it is refused, else with the nearest name.

    `owner`: the owner of the names, for the message.
    """
    if name in refused:
        raise ValueError(f"{name} cannot be set here: {refused[name]}")
    if name not in allowed:
        near = difflib.get_close_matches(str(name), [*allowed, *refused], n=1)
        raise ValueError(f"{name} is not one of {owner}; {f'nearest: {near[0]}' if near else 'remove it'}")


def refuse_secrets(given: Mapping[str, Any], remedy: str) -> None:
    """Raise ValueError if a value looks like a secret. The value is not shown."""
    for name in secret_names(given, unnamed=True):
        raise ValueError(
            f"must hold no secret, and {name} looks like one: a configuration is saved with its run; {remedy}"
        )
