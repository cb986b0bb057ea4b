"""Wire types: small frozen records that travel between generators, judges, replay buffer and learner.

Plain Python values only, so that any process can unpickle them without torch, Ray or vLLM.
"""

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt. Made by `prompts.py`; read by generators and judges."""

    id: str
    """Stable name, `<source>:<row>`; the same in every epoch and after a resume."""
    token_ids: tuple[int, ...]
    """Tokens the engine reads, including chat template and special tokens."""
    text: str  # text a judge reads
    answer: str | None = None
    """Gold answer for verifiers, verbatim from the data; None if the data has none."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Data of the row, if present: `messages` of a chat, `tools`, `columns` for judges, a structured `answer`."""


Draw = Literal["all", "policy", "opponents"]
"""Completions that a lease requests: the whole group, only the policy's K, or only the opponents' M."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to generate for one prompt. Made by the replay buffer; read by generators."""

    index: int
    """Position in the global order of leases; see `admission.py`. Negative for leases that never enter the buffer."""
    attempt: int
    """Number of earlier grants of this lease. An answer to an older attempt is ignored."""
    prompt: Prompt
    min_version: int  # oldest policy version that may generate it
    deadline: float
    """Time on the driver's clock (seconds) after which the lease may be granted again."""
    draw: Draw = "all"


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled response. Made by a generator; read by judges and learner."""

    token_ids: tuple[int, ...]
    """Response tokens, including the end-of-sequence token if any. Never empty."""
    logprobs: tuple[float, ...]
    """Behaviour log-prob of each token (nats), under exactly the distribution that sampled it; 0 if it is `given`."""
    versions: tuple[int, ...]  # policy version that sampled or read each token; never decreasing
    text: str  # decoded response without special tokens; in a conversation, the policy's last message
    finished: bool
    """True if it ended with end-of-sequence; False if the length limit or another stop token cut it."""
    opponent: bool = False
    """True if it was sampled as an opponent, from the mixture for example; False if it is the policy's own."""
    given: tuple[tuple[int, int], ...] = ()
    """Ranges [start, end) of tokens that an environment wrote. They are context: no loss, ratio or KL counts them."""
    messages: tuple[tuple[str, str], ...] = ()
    """Role and content of each message of a conversation, from the policy's first; empty without an environment."""
    reference_logprobs: tuple[float, ...] = ()
    """Log-prob of each token (nats) under the frozen reference; 0 if it is `given`. Empty if no actor scored them."""

    @property
    def oldest_version(self) -> int:
        return min(self.versions)

    @property
    def transcript(self) -> str:
        """Return the text or, for a conversation, every message under its role."""
        return "\n\n".join(f"{role}: {content}" for role, content in self.messages) if self.given else self.text

    @property
    def sampled_tokens(self) -> int:
        """Count the tokens that the policy sampled."""
        return len(self.token_ids) - sum(end - start for start, end in self.given)

    def sampled(self, values: Sequence[T]) -> list[T]:
        """Return the values of sampled tokens; `values` holds one per token."""
        return without(values, self.given)


@dataclass(frozen=True, slots=True)
class Judgement:
    """A judge's answer for one prompt's completions, opponents included. Made by judges; read by `pairing.py`."""

    scores: tuple[float, ...]
    """One score per completion; higher is better; all finite."""
    preferences: tuple[tuple[float, ...], ...] | None = None
    """`preferences[i][j]` = P(completion i is preferred to j); None from judges that only score."""


@dataclass(frozen=True, slots=True)
class Group:
    """The completions of one lease and, once judged, their judgement. Made by a generator; completed by a judge."""

    lease: Lease
    completions: tuple[Completion, ...]
    """The policy's K, then the opponents' M if these are sampled separately."""
    judgement: Judgement | None = None

    @property
    def oldest_version(self) -> int:
        return min(completion.oldest_version for completion in self.completions)


@dataclass(frozen=True, slots=True)
class Failure:
    """A lease that a generator or judge could not answer; its prompt is returned for this reason."""

    lease_index: int
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Pair:
    """A preferred and a dispreferred completion of one prompt. Made by `pairing.py`; read by losses on pairs."""

    lease_index: int
    prompt_token_ids: tuple[int, ...]
    chosen: Completion
    rejected: Completion
    margin: float
    """Score of chosen minus score of rejected, at least 0. 0 is a tie, which has no gradient."""

    @property
    def completions(self) -> tuple[Completion, Completion]:
        return self.chosen, self.rejected

    @property
    def tie(self) -> bool:
        return self.margin == 0.0

    def staleness(self, version: int) -> int:
        """Return the policy versions between the oldest token and `version`."""
        return version - min(self.chosen.oldest_version, self.rejected.oldest_version)


@dataclass(frozen=True, slots=True)
class Game:
    """A matrix game between the completions of one prompt. Made by `pairing.py`; read by losses on games."""

    lease_index: int
    prompt_token_ids: tuple[int, ...]
    players: tuple[Completion, ...]  # the policy's K completions
    opponents: tuple[Completion, ...]
    """The M opponents. Empty if each half of the players plays against the other."""
    preferences: tuple[tuple[float, ...], ...]
    """[K + M][K + M], players first: [i][j] = P(completion i is preferred to j); 1/2 on the diagonal."""
    scores: tuple[float, ...]  # [K + M]: the judge's scores

    @property
    def completions(self) -> tuple[Completion, ...]:
        return self.players + self.opponents

    def staleness(self, version: int) -> int:
        """Return the policy versions between the players' oldest token and `version`."""
        return version - min(completion.oldest_version for completion in self.players)

    def opponent_staleness(self, version: int) -> int:
        """Return the same for the opponents, or for the players if they play against each other."""
        return version - min(completion.oldest_version for completion in self.opponents or self.players)


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One tensor of a publication."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # torch dtype without its prefix: `float32`, `bfloat16`
    fingerprint: str  # of its bits, by `weights.fingerprint`


@dataclass(frozen=True, slots=True)
class Canary:
    """A prompt with an answer of the policy's, and the learner's log-probs of it under the published weights."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Log-probs (nats, at temperature 1) of the answer's tokens, which come last."""


@dataclass(frozen=True, slots=True)
class Transport:
    """Properties of one way of weight sync that the rest of a run depends on."""

    one_host: bool = False  # generators must run on the learner's host
    in_files: bool = False  # weights are in files of a memory-backed file system
    readable: bool = False  # anyone who has the manifest may read the weights, not only generators
    broadcast: bool = False  # one transfer reaches all generators, in which the learner takes part
    needs_gpus: bool = False

    @property
    def beside_updates(self) -> bool:
        """Return whether the learner serves generators while it computes an update."""
        return not self.readable


TRANSPORTS = {
    "shm": Transport(one_host=True, in_files=True, readable=True),
    "object_store": Transport(readable=True),
    "gloo": Transport(broadcast=True),
    "nccl": Transport(broadcast=True, needs_gpus=True),
    "ipc": Transport(one_host=True, needs_gpus=True),
}
"""Transports by their names in `publication.transport`."""


@dataclass(frozen=True, slots=True)
class Seat:
    """A place in a transfer group. Made by the learner and the driver; read by the joining process."""

    group: str  # a new name for every membership
    address: str  # of the store at which all meet
    port: int
    seconds: float  # longest time for one publication
    size: int  # workers of all generators, and the learner
    rank: int = 0  # of the generator's first worker; 0 is the learner


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of a publication, for every receiver to verify. Made by the learner's publisher."""

    version: int
    tensors: tuple[TensorRecord, ...]
    canary: Canary  # with the same tokens at every version of one learner
    transport: str  # a key of `TRANSPORTS`
    location: str = ""
    """Path of the safetensors file; empty unless `transport` is `shm`."""
    fresh: Canary | None = None  # of a rollout that was just trained on


@dataclass(frozen=True, slots=True)
class GeneratorStatus:
    """Counters of one generator since it started, for metrics and the time budget."""

    name: str
    version: int
    running: int  # leases being generated
    waiting: int
    """Leases that wait for room or for newer weights."""
    tokens: int  # response tokens sampled
    generating_seconds: float
    updating_seconds: float
    idle_seconds: float
    process: str  # incarnation id; changes when the process restarts
    gap: float | None = None
    """Largest difference (nats) from the learner's log-probs on a rollout, both with this version's weights; None
    before the first rollout."""


def without(values: Sequence[T], given: Sequence[tuple[int, int]]) -> list[T]:
    """Return `values` outside the ranges [start, end) of `given`, which must be in order."""
    edges = [0, *(edge for span in given for edge in span), len(values)]
    return [value for start, end in zip(edges[::2], edges[1::2], strict=True) for value in values[start:end]]


def flatten(groups: Sequence[Group]) -> list[Completion]:
    """Return all completions of `groups`, in order."""
    return [completion for group in groups for completion in group.completions]


def with_tuples(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return `row` with every list, nested ones too, as a tuple: records hold tuples, which JSON and Parquet lack."""
    return {name: _as_tuple(value) for name, value in row.items()}


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list | tuple) else value


@dataclass(frozen=True, slots=True)
class Pulse:
    """A sign of life of an actor's process. Made by the actor; read by the watchdog."""

    host: str
    process: int
    stalled_seconds: float = 0.0
    """Seconds since its last progress, if it has work; 0 if unknown."""

    @classmethod
    def of_this_process(cls, stalled_seconds: float = 0.0) -> "Pulse":
        return cls(socket.gethostname(), os.getpid(), stalled_seconds)
