"""A generator: turns leases into groups of completions and takes new weights meanwhile.

One thread owns the engine; the public methods only pass messages to it and may be called from any thread. `remote.py`
makes a Ray actor of this plain class. Must not depend on the replay buffer, judges or the publisher.
"""

import hashlib
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from actors.errors import ENGINE_MEMORY, OffbeatError, RunError, UsageError, oom_hint
from actors.generation.config import GeneratorSpec, OpponentConfig, SamplingConfig
from actors.generation.engine import Engine
from actors.generation.weights import check_expected, check_not_older, expected_tensors
from actors.records import Completion, Draw, Failure, GeneratorStatus, Group, Lease, Manifest

T = TypeVar("T")
GENERATING, UPDATING, IDLE = "generating", "updating", "idle"


class EngineLike(Protocol):
    """The part of `engine.Engine` that a generator uses."""

    @property
    def version(self) -> int: ...
    @property
    def failure(self) -> RunError | None: ...
    @property
    def busy(self) -> bool: ...
    def add(
        self, request_id: str, prompt_token_ids: Sequence[int], opponent: bool = False, seed: int | None = None
    ) -> None: ...
    def step(self) -> list[tuple[str, Completion]]: ...
    def abort(self, request_ids: Sequence[str]) -> None: ...
    def connect(self, init_info: dict[str, Any]) -> None: ...
    def load(self, manifest: Manifest, payload: Any = None) -> None: ...


@dataclass
class _Running:
    """A lease being generated."""

    lease: Lease
    completions: dict[int, Completion] = field(default_factory=dict)  # finished ones, by position


def requested_roles(sampling: SamplingConfig, opponent: OpponentConfig | None) -> dict[Draw, tuple[bool, ...]]:
    """Return, for each draw, whether each completion is an opponent's; the policy's come first."""
    players = (False,) * sampling.completions_per_prompt
    opponents = () if opponent is None else (True,) * opponent.completions_per_prompt
    sampled = opponent is not None and opponent.sampled
    return {"all": players + opponents * sampled, "policy": players, "opponents": opponents}


def request_seed(seed: int, lease_index: int, position: int) -> int:
    """Return the seed of one completion, in [0, 2^63): the same at every attempt, independent of all others."""
    digest = hashlib.sha256(f"{seed}:{lease_index}:{position}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Generator:
    """Serves leases until closed. `make_engine` runs in the thread that owns the engine.

    The constructor returns when the engine is ready, or raises the error of `make_engine`.
    """

    def __init__(self, spec: GeneratorSpec, make_engine: Callable[[GeneratorSpec], EngineLike] = Engine) -> None:
        self._name = spec.name
        self._process = secrets.token_hex(8)
        self._spec = spec
        self._roles = requested_roles(spec.sampling, spec.opponent)
        # Guards all state below; notified on every change.
        self._changed = threading.Condition()
        self._waiting: deque[Lease] = deque()
        self._running: dict[tuple[int, int], _Running] = {}
        self._results: list[Group | Failure] = []
        self._orders: deque[tuple[Callable[[EngineLike], Any], Future[Any]]] = deque()
        self._failure: OffbeatError | None = None
        self._closed = False
        self._version = 0
        self._tokens = 0
        self._seconds = dict.fromkeys((GENERATING, UPDATING, IDLE), 0.0)
        self._activity = IDLE
        self._since = time.monotonic()
        self._requests: dict[str, tuple[tuple[int, int], int]] = {}
        """By request id: the lease's key in `_running`, and the completion's position."""
        ready: Future[None] = Future()
        arguments = (make_engine, ready)
        self._thread = threading.Thread(target=self._serve, args=arguments, name=f"{self._name}-engine", daemon=True)
        self._thread.start()
        ready.result()

    def submit(self, leases: Sequence[Lease]) -> None:
        """Accept leases. Each starts when there is room and its `min_version` has been loaded."""
        with self._changed:
            self._check()
            known = set(self._running) | {(lease.index, lease.attempt) for lease in self._waiting}
            self._waiting.extend(lease for lease in leases if (lease.index, lease.attempt) not in known)
            self._changed.notify_all()

    def collect(self, timeout_seconds: float) -> list[Group | Failure]:
        """Return results as soon as there are any; empty if none arrive within `timeout_seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: self._results or self._failure or self._closed, timeout_seconds)
            self._check()
            results, self._results = self._results, []
            return results

    def take_weights(self, manifest: Manifest, chunks: Any = None) -> int:
        """Load a publication between two engine steps, as `Engine.load` does; return the version then in use.

        `chunks` is the payload. Raises WeightMismatchError if it is refused; unless the model was already changed,
        generation continues with the old weights.
        """

        def load(engine: EngineLike) -> int:
            engine.load(manifest, chunks)
            return engine.version

        return self._order(load)

    def check_weights(self, manifest: Manifest) -> None:
        """Check version, names and shapes before a transfer that cannot be refused once it has begun.

        Raises WeightMismatchError if the version is older than the one in use, or a name or shape does not fit.
        """
        check_not_older(manifest, self._version)
        expected = expected_tensors(self._spec.model_dir, with_reference=self._spec.publishes_average)
        check_expected(manifest, expected)

    def connect_weights(self, init_info: dict[str, Any]) -> None:
        """Join the learner's `nccl` or `ipc` transfer; return when both have joined."""
        self._order(lambda engine: engine.connect(init_info))

    def status(self) -> GeneratorStatus:
        """Return the counters; the three durations add up to the time since the engine was ready."""
        with self._changed:
            self._check()
            self._switch(self._activity)
            return GeneratorStatus(
                name=self._name,
                version=self._version,
                running=len(self._running),
                waiting=len(self._waiting),
                tokens=self._tokens,
                generating_seconds=self._seconds[GENERATING],
                updating_seconds=self._seconds[UPDATING],
                idle_seconds=self._seconds[IDLE],
                process=self._process,
            )

    def close(self) -> None:
        """Stop after the current step and drop leases in progress. Safe to call twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise RunError(f"{self._name} is closed; start a new generator")

    def _order(self, work: Callable[[EngineLike], T]) -> T:
        """Run `work` in the engine's thread between two steps and wait for its result."""
        done: Future[T] = Future()
        with self._changed:
            self._check()
            self._orders.append((work, done))
            self._changed.notify_all()
        return done.result()

    # Everything below runs in the engine's thread.

    def _serve(self, make_engine: Callable[[GeneratorSpec], EngineLike], ready: Future[None]) -> None:
        try:
            with oom_hint(f"the engine of {self._name}", ENGINE_MEMORY):
                engine = make_engine(self._spec)
        except BaseException as error:
            ready.set_exception(error)
            return
        with self._changed:
            self._since = time.monotonic()
        ready.set_result(None)
        try:
            while self._await_work(engine):
                self._execute_orders(engine)
                self._start_leases(engine)
                if engine.busy:
                    with self._changed:
                        self._switch(GENERATING)
                    with oom_hint(f"the engine of {self._name}", ENGINE_MEMORY):
                        finished = engine.step()
                    self._deliver(finished)
        except Exception as error:
            self._fail(error)
        finally:
            self._release(RunError(f"{self._name} was closed before this was done"))

    def _await_work(self, engine: EngineLike) -> bool:
        """Wait until there is work; return False once closed."""
        with self._changed:
            if not (engine.busy or self._orders or self._startable() or self._closed):
                self._switch(IDLE)
                self._changed.wait_for(lambda: self._orders or self._startable() or self._closed)
            return not self._closed

    def _execute_orders(self, engine: EngineLike) -> None:
        while True:
            with self._changed:
                if not self._orders:
                    return
                work, done = self._orders[0]
                self._switch(UPDATING)
            try:
                result = work(engine)
            except Exception as error:
                self._orders.popleft()
                done.set_exception(error)
                if engine.failure is not None:
                    raise
            else:
                with self._changed:
                    self._version = engine.version
                    self._orders.popleft()
                done.set_result(result)

    def _startable(self) -> Lease | None:
        """Return the first waiting lease that the current weights may serve, or None if there is no room."""
        if len(self._running) >= self._spec.generators.max_running_prompts:
            return None
        return next((lease for lease in self._waiting if lease.min_version <= self._version), None)

    def _start_leases(self, engine: EngineLike) -> None:
        while True:
            with self._changed:
                lease = self._startable()
                if lease is None:
                    return
                self._waiting.remove(lease)
                roles = self._roles[lease.draw]
                key = (lease.index, lease.attempt)
                self._running[key] = _Running(lease)
            request_ids = [f"{lease.index}.{lease.attempt}.{k}" for k in range(len(roles))]
            try:
                for k, (request_id, opponent) in enumerate(zip(request_ids, roles, strict=True)):
                    seed = request_seed(self._spec.seed, lease.index, k) if self._spec.deterministic else None
                    engine.add(request_id, lease.prompt.token_ids, opponent, seed)
                    self._requests[request_id] = (key, k)
            except UsageError as error:
                engine.abort(request_ids)
                for request_id in request_ids:
                    self._requests.pop(request_id, None)
                with self._changed:
                    del self._running[key]
                    self._results.append(Failure(lease.index, lease.attempt, str(error)))
                    self._changed.notify_all()

    def _deliver(self, finished: Sequence[tuple[str, Completion]]) -> None:
        with self._changed:
            for request_id, completion in finished:
                key, k = self._requests.pop(request_id)
                running = self._running[key]
                running.completions[k] = completion
                self._tokens += len(completion.token_ids)
                wanted = len(self._roles[running.lease.draw])
                if len(running.completions) == wanted:
                    del self._running[key]
                    completions = tuple(running.completions[k] for k in range(wanted))
                    self._results.append(Group(running.lease, completions))
            self._changed.notify_all()

    def _switch(self, activity: str) -> None:
        """Add the time since the last switch to the current activity's seconds, then start `activity`."""
        now = time.monotonic()
        self._seconds[self._activity] += now - self._since
        self._activity, self._since = activity, now

    def _fail(self, error: Exception) -> None:
        failure = error if isinstance(error, OffbeatError) else None
        if failure is None:
            failure = RunError(f"{self._name}: the engine failed with {type(error).__name__}: {error}; see its log")
            failure.__cause__ = error
        with self._changed:
            self._failure = failure
            self._changed.notify_all()
        self._release(failure)

    def _release(self, reason: OffbeatError) -> None:
        """Fail every pending order with `reason`."""
        with self._changed:
            orders, self._orders = self._orders, deque()
            self._changed.notify_all()
        for _, done in orders:
            done.set_exception(reason)
