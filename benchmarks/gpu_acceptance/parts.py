"""The parts of the acceptance, their time limits, and when one is left out. Must not import anything heavy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Part:
    """One check or measurement: a generator function that yields figures, called with a `Setup`."""

    module: str  # below this package
    function: str
    limit: float  # seconds
    gpus: int = 0  # needed
    why: str = ""  # the reason, if there are fewer
    in_both_dtypes: bool = False
    once: bool = False  # for the first model only


_NCCL = "NCCL refuses two ranks on one device, so the learner and the engine need a GPU each"
_IPC = "not here: ipc shares the memory of a GPU"
_SLEEP = "not here: vLLM's sleep mode frees GPU memory, and its CPU engine has none"

PARTS = {
    "shm": Part("transports", "transport", 180),
    "ipc": Part("transports", "transport", 180, gpus=1, why=_IPC),
    "nccl": Part("transports", "transport", 180, gpus=2, why=_NCCL),
    "learner": Part("learning", "learner", 180),
    "generation": Part("engines", "generation", 240),
    "kill": Part("transports", "kill", 120, once=True),
    "mixture": Part("mixture", "mixture", 240, once=True, in_both_dtypes=True),
    "sleep": Part("engines", "sleep", 180, gpus=1, why=_SLEEP, once=True),
    "canary": Part("canary", "canary", 120),
    "gloo": Part("transports", "transport", 180, once=True),
    "object_store": Part("transports", "transport", 180, once=True),
}
"""Parts by name, in the order in which they run: those that only a GPU can answer come first."""


@dataclass(frozen=True)
class Setup:
    """Input of a part. Travels to its process as JSON."""

    part: str
    model: str  # Hugging Face directory of the policy
    reference: str  # of a model with the same sizes and other weights
    scratch: str  # an empty directory on a memory-backed file system
    cuda: bool
    dtype: str
    seconds: float  # until the part is stopped
    rounds: int
    publications: int
    requests: int
    new_tokens: int
    row_tokens: int  # of a prompt with its completion, in the learner
    micro_batch_tokens: int
    engine_memory: float  # share of the card
    eager: bool
    offload_optimizer: bool
    kill_mib: int
    peak_flops: float | None


@dataclass(frozen=True)
class Sample:
    """One sampled answer, with its behaviour log-probs (nats)."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


class SkippedError(Exception):
    """The part cannot run here; the text says why."""


class FailedError(Exception):
    """The part ran, and what it found is wrong; the text says what."""


def reason_to_skip(part: Part, machine: Mapping[str, Any]) -> str | None:
    """Return why a machine cannot run `part`, or None. `machine`: the figures of `part.machine`."""
    visible = machine.get("gpus", 0)
    if visible >= part.gpus:
        return None
    return f"{part.why}; this process sees {visible}"
