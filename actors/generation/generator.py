"""A generator: turns leases into groups of completions and takes new weights meanwhile.

One thread owns the engine; the public methods only pass messages to it and may be called from any thread. `remote.py`
makes a Ray actor of this plain class. Must not depend on the replay buffer, judges or the publisher.
"""

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from actors.environments.rollouts import Rollouts, TurnEngine
from actors.errors import ENGINE_MEMORY, EngineStartError, OffbeatError, RunError, UsageError, logged, oom_hint
from actors.foreign.text import shown
from actors.generation.config import GeneratorSpec, OpponentConfig, SamplingConfig, seed_of
from actors.generation.engine import Engine
from actors.generation.weights import check_expected, check_not_older, expected_tensors
from actors.records import Completion, Draw, Failure, GeneratorStatus, Group, Lease, Manifest, Pulse

T = TypeVar("T")
GENERATING, UPDATING, IDLE = "generating", "updating", "idle"


class EngineLike(TurnEngine, Protocol):
    """The part of `engine.Engine` that a generator uses. Only conversations use `tokenizer` and `ends`."""

    @property
    def failure(self) -> RunError | None: ...
    @property
    def gap(self) -> float | None: ...
    @property
    def tokenizer(self) -> Any: ...
    @property
    def ends(self) -> tuple[int, ...]: ...
    def load(self, manifest: Manifest, payload: Sequence[Any] | None = None) -> None: ...


@dataclass
class _Running:
    """A lease being generated."""

    lease: Lease
    completions: dict[int, Completion] = field(default_factory=dict)  # finished ones, by position


def requested_roles(sampling: SamplingConfig, opponent: OpponentConfig | None) -> dict[Draw, tuple[bool, ...]]:
    """Return a flag for each completion of each draw: True if it is an opponent's. The policy's come first."""
    players = (False,) * sampling.completions_per_prompt
    opponents = () if opponent is None else (True,) * opponent.completions_per_prompt
    sampled = opponent is not None and opponent.sampled
    return {"all": players + opponents * sampled, "policy": players, "opponents": opponents}


def request_seed(seed: int, lease_index: int, position: int) -> int:
    """Return the seed of one completion, in [0, 2^63): the same at every attempt, independent of all others."""
    return seed_of(seed, lease_index, position)


def did_not_start_again(error: Exception) -> EngineStartError:
    """Return the error of a generator whose process was restarted, but whose engine failed to start with `error`."""
    cause = str(error) if isinstance(error, OffbeatError) else f"{type(error).__name__}: {error}"
    return EngineStartError(f"its engine did not start again: {cause}", secrets.token_hex(8))


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
        self._withdrawn: set[tuple[int, int]] = set()
        self._results: list[Group | Failure] = []
        self._orders: deque[tuple[Callable[[EngineLike], Any], Future[Any]]] = deque()
        self._failure: OffbeatError | None = None
        self._closed = False
        self._version = 0
        self._gap: float | None = None
        self._tokens = 0
        self._seconds = dict.fromkeys((GENERATING, UPDATING, IDLE), 0.0)
        self._activity = IDLE
        self._since = time.monotonic()
        self._requests: dict[str, tuple[tuple[int, int], int]] = {}
        """Key in `_running` and position of the completion, by request id."""
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

    def withdraw(self, leases: Sequence[tuple[int, int]]) -> None:
        """Drop leases, by index and attempt, without an answer; ignore those that are not held."""
        with self._changed:
            self._check()
            self._waiting = deque(lease for lease in self._waiting if (lease.index, lease.attempt) not in leases)
            self._withdrawn.update(leases)

    def collect(self, timeout_seconds: float) -> list[Group | Failure]:
        """Return results as soon as there are any; an empty list after `timeout_seconds` without results."""
        with self._changed:
            self._changed.wait_for(lambda: self._results or self._failure or self._closed, timeout_seconds)
            self._check()
            results, self._results = self._results, []
            return results

    def take_weights(self, manifest: Manifest, payload: Sequence[Any] | None = None) -> int:
        """Load a publication between two engine steps, as `Engine.load` does; return the version then in use.

        `payload`: the transport's data beside the manifest. Raises WeightMismatchError if the publication is refused,
        TransferInterruptedError if another generator's failure ended its transfer. Generation then continues with the
        old weights, unless the model was already changed.
        """

        def load(engine: EngineLike) -> int:
            engine.load(manifest, payload)
            return engine.version

        return self._order(load)

    def check_weights(self, manifest: Manifest) -> None:
        """Check version, names and shapes before a transfer, which cannot be refused once it has begun.

        Raises WeightMismatchError if the version is older than the one in use, or a name or shape does not fit.
        """
        check_not_older(manifest, self._version)
        spec = self._spec
        expected = expected_tensors(spec.model_dir, with_reference=spec.publishes_average, adapter=spec.adapter)
        check_expected(manifest, expected)

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
                gap=self._gap,
            )

    def pulse(self) -> Pulse:
        """Return a sign of life, with the time since the engine's step under way began."""
        # Without the lock, because its holder may hang.
        return Pulse.of_this_process(time.monotonic() - self._since if self._activity == GENERATING else 0.0)

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
            rollouts = self._rollouts(engine)
        except BaseException as error:
            ready.set_exception(error)
            return
        with self._changed:
            self._since = time.monotonic()
        ready.set_result(None)
        try:
            while self._await_work(rollouts):
                self._execute_orders(engine)
                self._drop_withdrawn(rollouts)
                self._start_leases(rollouts)
                if rollouts.busy:
                    with self._changed:
                        self._switch(GENERATING)
                    with oom_hint(f"the engine of {self._name}", ENGINE_MEMORY):
                        finished = rollouts.step()
                    self._deliver(finished, rollouts)
        except Exception as error:
            self._fail(error)
        finally:
            self._release(RunError(f"{self._name} was closed before this was done"))

    def _rollouts(self, engine: EngineLike) -> Rollouts:
        environment = self._spec.sampling.environment
        if environment is None:
            return Rollouts(engine)
        tokenizer = engine.tokenizer
        if self._spec.chat_template is not None:
            tokenizer.chat_template = self._spec.chat_template
        return Rollouts(
            engine,
            environment,
            tokenizer=tokenizer,
            ends=engine.ends,
            stops=self._spec.sampling.stop_token_ids,
            limit=self._spec.sampling.max_new_tokens,
            in_order=self._spec.deterministic,
        )

    def _await_work(self, rollouts: Rollouts) -> bool:
        """Wait until there is work; return False once closed."""
        with self._changed:
            if not (rollouts.busy or self._orders or self._startable() or self._closed):
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
                    self._version, self._gap = engine.version, engine.gap
                    self._orders.popleft()
                done.set_result(result)

    def _startable(self) -> Lease | None:
        """Return the first waiting lease that the current weights may serve; None without one, or without room."""
        if len(self._running) >= self._spec.generators.max_running_prompts:
            return None
        return next((lease for lease in self._waiting if lease.min_version <= self._version), None)

    def _start_leases(self, rollouts: Rollouts) -> None:
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
                    rollouts.add(request_id, lease.prompt, opponent, seed)
                    self._requests[request_id] = (key, k)
            except UsageError as error:
                self._give_up(lease, error, rollouts)

    def _drop_withdrawn(self, rollouts: Rollouts) -> None:
        with self._changed:
            for key in self._withdrawn & self._running.keys():
                self._drop(self._running[key].lease, rollouts)
            self._withdrawn.clear()

    def _give_up(self, lease: Lease, error: OffbeatError, rollouts: Rollouts) -> None:
        """Answer a lease with a failure, and drop all of its requests."""
        with self._changed:
            self._drop(lease, rollouts)
            self._results.append(Failure(lease.index, lease.attempt, shown(error)))
            self._changed.notify_all()

    def _drop(self, lease: Lease, rollouts: Rollouts) -> None:
        """Drop a running lease with all of its requests."""
        request_ids = [f"{lease.index}.{lease.attempt}.{k}" for k in range(len(self._roles[lease.draw]))]
        rollouts.abort(request_ids)
        for request_id in request_ids:
            self._requests.pop(request_id, None)
        del self._running[lease.index, lease.attempt]

    def _deliver(self, finished: Sequence[tuple[str, Completion | OffbeatError]], rollouts: Rollouts) -> None:
        with self._changed:
            for request_id, completion in finished:
                if request_id not in self._requests:  # its lease was given up with another of its requests
                    continue
                key, k = self._requests.pop(request_id)
                running = self._running[key]
                if isinstance(completion, OffbeatError):
                    self._give_up(running.lease, completion, rollouts)
                    continue
                running.completions[k] = completion
                self._tokens += completion.sampled_tokens
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
            failure = RunError(logged(f"{self._name}: the engine failed with {type(error).__name__}: {error}"))
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
