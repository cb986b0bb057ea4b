"""Wire types: the small frozen records that travel between generators, judges, buffer and learner.

They hold plain Python values only, so that any process can unpickle them without torch, ray or vllm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt. Made by `prompts.py`; read by generators and judges."""

    id: str
    """Stable name, `<source>:<row>`; the same in every epoch and after a resume."""
    token_ids: tuple[int, ...]
    """What the engine is given, chat template and special tokens included."""
    text: str
    """What a judge is shown."""
    answer: str | None = None
    """Gold answer for verifiers, verbatim from the data; None where the data has none."""
    metadata: Mapping[str, Any] = field(default_factory=dict)


Draw = Literal["all", "policy", "opponents"]
"""What a lease asks for: everything a group needs, the policy's K completions alone, or the opponents' M alone."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to generate for one prompt. Made by the replay buffer; read by generators."""

    index: int
    """Position in the global order of leases; update `u` consumes `[uB, (u+1)B)` in lease order.
    Evaluation leases, which never enter the buffer, have negative indices."""
    attempt: int
    """0 for the first grant, one more for each re-grant: a late answer to an older attempt is refused."""
    prompt: Prompt
    min_version: int
    """A generator must have taken at least this policy version before it starts."""
    deadline: float
    """Seconds on the coordinator's clock after which the lease may be granted again."""
    draw: Draw = "all"
    """What to sample."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled response. Made by a generator; read by judges and learner."""

    token_ids: tuple[int, ...]
    """Response tokens, the end-of-sequence token included when there is one. Never empty."""
    logprobs: tuple[float, ...]
    """Behaviour log-prob (nats) of each token under exactly the distribution that sampled it."""
    versions: tuple[int, ...]
    """Policy version that sampled each token; not decreasing."""
    text: str
    """Decoded response without special tokens."""
    finished: bool
    """True when it ended with end-of-sequence, False when it was cut at the length limit."""
    opponent: bool = False
    """True when it was drawn as an opponent (of the mixture, say), False when it is the policy's."""

    @property
    def oldest_version(self) -> int:
        return min(self.versions)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge says of one prompt's completions, opponents included. Made by judges; read by pairing."""

    scores: tuple[float, ...]
    """One score per completion; higher is better; all finite."""
    preferences: tuple[tuple[float, ...], ...] | None = None
    """`preferences[i][j]` = P(completion i is preferred to j), for judges that compare pairs; None for scalar ones."""


@dataclass(frozen=True, slots=True)
class Group:
    """One lease's completions and, once judged, their judgement. Made by a generator; completed by a judge."""

    lease: Lease
    completions: tuple[Completion, ...]
    """The policy's K, then the opponents' M where these are drawn apart."""
    judgement: Judgement | None = None

    @property
    def oldest_version(self) -> int:
        return min(completion.oldest_version for completion in self.completions)


@dataclass(frozen=True, slots=True)
class Failure:
    """A lease that came to nothing: generator or judge could not answer. The prompt goes back with the reason."""

    lease_index: int
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Pair:
    """What a preference loss consumes. Made by `pairing.py`; read by the learner."""

    lease_index: int
    prompt_token_ids: tuple[int, ...]
    chosen: Completion
    rejected: Completion
    margin: float
    """Score of chosen minus score of rejected, at least 0; 0 means a tie, which carries no gradient."""

    @property
    def tie(self) -> bool:
        return self.margin == 0.0

    def staleness(self, version: int) -> int:
        """Policy versions between the pair's oldest token and `version`."""
        return version - min(self.chosen.oldest_version, self.rejected.oldest_version)


@dataclass(frozen=True, slots=True)
class Game:
    """What a game loss consumes: one prompt's preference game as sampled. Made by `pairing.py`; read by the learner."""

    lease_index: int
    prompt_token_ids: tuple[int, ...]
    players: tuple[Completion, ...]
    """K completions of the policy."""
    opponents: tuple[Completion, ...]
    """M completions drawn as opponents. Empty: each half of the players plays against the other."""
    preferences: tuple[tuple[float, ...], ...]
    """[K + M][K + M], players first: [i][j] = P(completion i is preferred to j); 1/2 on the diagonal."""
    scores: tuple[float, ...]
    """[K + M]: the judge's scores."""

    @property
    def completions(self) -> tuple[Completion, ...]:
        return self.players + self.opponents

    def staleness(self, version: int) -> int:
        """Policy versions between the oldest token of the players and `version`."""
        return version - min(completion.oldest_version for completion in self.players)

    def opponent_staleness(self, version: int) -> int:
        """The same of the opponents; of the players where these are each other's opponents."""
        return version - min(completion.oldest_version for completion in self.opponents or self.players)


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One tensor of a publication."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """torch dtype without the prefix: `float32`, `bfloat16`."""
    fingerprint: str
    """`weights.fingerprint` of its bits."""


@dataclass(frozen=True, slots=True)
class Canary:
    """A fixed token sequence and the learner's log-probs of its tokens 1.. under the published weights."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """One fewer than `token_ids`: the first token has no prediction."""


SENT_BY_LEARNER = ("nccl", "ipc")
"""Transports in which the learner sends the bytes itself; in the others generators fetch them."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a publication must contain. Made by the learner's publisher; checked by every receiver."""

    version: int
    tensors: tuple[TensorRecord, ...]
    canary: Canary
    transport: str
    """`shm`, `object_store`, `nccl` or `ipc`."""
    location: str = ""
    """`shm`: path of the safetensors file. Others: empty."""


@dataclass(frozen=True, slots=True)
class GeneratorStatus:
    """A generator's own account, for metrics and the time budget. Seconds are since its start."""

    name: str
    version: int
    running: int
    """Leases being generated."""
    waiting: int
    """Leases held back for newer weights."""
    tokens: int
    """Response tokens sampled since the start."""
    generating_seconds: float
    updating_seconds: float
    idle_seconds: float
    process: str
    """Of whom this is the account: a generator that was started again has another."""


def flatten(groups: Sequence[Group]) -> list[Completion]:
    """All completions of `groups`, in order."""
    return [completion for group in groups for completion in group.completions]
