"""Ray's actors as the loop's ports, with stand-ins for actors: no Ray is started."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import ray
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from actors.errors import EngineStartError, RunError, TransferInterruptedError, UsageError, WeightMismatchError
from actors.records import Canary, GeneratorStatus, Lease, Manifest, Seat
from launch.cluster import ray_actors as ray_ports
from launch.cluster.interchangeable import RayJudge
from launch.cluster.ray_actors import RayGenerator, RayLearner
from launch.run.protocols import GeneratorDeadError, GeneratorUnavailableError
from tests.fakes.generators import FakePrompts, group_of

MANIFEST = Manifest(1, (), Canary((), ()), "nccl")
GROUP = group_of(Lease(3, 1, FakePrompts().prompt(3), 0, 60.0), (0,), (0,))


class FakeActor:
    """An actor handle: each call of a method gives or raises the next of its answers, the last one for ever."""

    def __init__(self, **answers: Any) -> None:
        self.calls: list[str] = []
        self._answers = {
            name: list(answer) if isinstance(answer, list) else [answer] for name, answer in answers.items()
        }

    def __getattr__(self, name: str) -> Any:
        return _Method(self, name)

    async def answer(self, name: str) -> Any:
        self.calls.append(name)
        answers = self._answers[name]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        if answer is Ellipsis:
            await asyncio.Event().wait()
        return answer


class _Method:
    def __init__(self, actor: FakeActor, name: str) -> None:
        self._actor, self._name = actor, name

    def options(self, **_: Any) -> _Method:
        return self

    def remote(self, *_: Any) -> Any:
        return self._actor.answer(self._name)


def _wrapped(cause: Exception, times: int = 1) -> Exception:
    """As Ray delivers what an actor raised; once more for each actor that it passed through."""
    for _ in range(times):
        cause = RayTaskError("method", "traceback", cause)
    return cause


def _status(process: str) -> GeneratorStatus:
    return GeneratorStatus("g", 0, 0, 0, 0, 0.0, 0.0, 0.0, process)


def _unavailable() -> ActorUnavailableError:
    return ActorUnavailableError("restarting", None)


@pytest.fixture(autouse=True)
def restarts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let Ray report that no actor was restarted, or what a test puts in."""
    counts = [0]
    monkeypatch.setattr(ray_ports, "restarts", lambda actor: counts.pop(0) if counts[1:] else counts[0])
    return counts


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    actors: list[Any] = []
    monkeypatch.setattr(ray, "kill", lambda actor, no_restart: actors.append((actor, no_restart)))
    return actors


def test_a_broken_engine_s_process_is_killed_once_however_many_calls_say_so(killed: list[Any]) -> None:
    """A second kill met the new process, and a few failures used up all restarts."""
    broken = _wrapped(RunError("the engine failed"))
    another = _wrapped(RunError("it failed in another way"))
    actor = FakeActor(collect=broken, status=[broken, _unavailable(), _status("new")], submit=another)

    async def test() -> None:
        generator = RayGenerator("g", actor)
        for call in (generator.collect(1.0), generator.status()):
            with pytest.raises(GeneratorUnavailableError, match="g: the engine failed"):
                await call
        assert killed == [(actor, False)]
        await generator.ready()
        with pytest.raises(GeneratorUnavailableError):
            await generator.submit([])
        assert len(killed) == 2, "the new process may break too"

    asyncio.run(test())


@pytest.mark.parametrize(("sampled", "error"), [([], GeneratorDeadError), ([GROUP], GeneratorUnavailableError)])
def test_an_engine_that_fails_twice_alike_is_not_started_again_unless_it_sampled_between(
    sampled: list[Any], error: type[Exception], killed: list[Any]
) -> None:
    """Four starts met the same error before the run ended. The logs are of different processes."""
    first, second = (_wrapped(RunError(f"the engine failed; its log is /tmp/{number}.err on h")) for number in (1, 2))
    actor = FakeActor(collect=[first, sampled, second], status=[_unavailable(), _status("new")])

    async def test() -> None:
        generator = RayGenerator("g", actor)
        with pytest.raises(GeneratorUnavailableError):
            await generator.collect(1.0)
        await generator.ready()
        assert await generator.collect(1.0) == sampled
        with pytest.raises(error, match=r"g: the engine failed; its log is /tmp/2\.err on h"):
            await generator.collect(1.0)
        assert killed == [(actor, False), (actor, error is GeneratorDeadError)]

    asyncio.run(test())


def test_a_start_that_fails_twice_alike_is_the_last_unless_memory_may_become_free(
    killed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_ports, "START_PAUSE_SECONDS", 0.0)

    async def test(said: str, error: type[Exception]) -> None:
        starts = [_wrapped(EngineStartError(said, process)) for process in ("one", "two")]
        generator = RayGenerator("g", FakeActor(status=starts))
        with pytest.raises(GeneratorUnavailableError, match=said):
            await generator.ready()
        with pytest.raises(error, match=said):
            await generator.ready()

    asyncio.run(test("no attention of head size 16", GeneratorDeadError))
    asyncio.run(test("Free memory is less than desired", GeneratorUnavailableError))


def test_a_death_is_told_with_the_log_of_the_process() -> None:
    died = ActorDiedErrorContext(
        error_message="The actor died unexpectedly before finishing this task.",
        pid=42,
        node_ip_address="10.0.0.7",
        actor_id=b"a" * 16,
    )
    said = ray_ports.reason(ActorDiedError(died))
    assert said.startswith("The actor died unexpectedly before finishing this task; its log is ")
    assert said.endswith("/ray/session_latest/logs/worker-*-42.err on 10.0.0.7")


def test_a_generator_that_is_killed_while_its_calls_say_it_is_broken_is_killed_once_until_it_is_back(
    killed: list[Any],
) -> None:
    actor = FakeActor(collect=_wrapped(RunError("the engine failed")), status=[_unavailable(), _status("new")])

    async def test() -> None:
        generator = RayGenerator("g", actor)
        generator.kill()
        with pytest.raises(GeneratorUnavailableError):
            await generator.collect(1.0)
        assert killed == [(actor, False)]
        await generator.ready()
        generator.kill()
        assert killed == [(actor, False)] * 2

    asyncio.run(test())


def test_a_restart_whose_engine_does_not_start_is_told_and_tried_again_once_per_process(
    killed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A constructor that raised at a restart, as when a dead process still held GPU memory, was the actor's end."""
    monkeypatch.setattr(ray_ports, "START_PAUSE_SECONDS", 0.0)
    first, second = (_wrapped(EngineStartError("no memory is free", process)) for process in ("1", "2"))
    actor = FakeActor(status=[first, first, _unavailable(), second, _unavailable(), _status("3")])

    async def test() -> None:
        generator = RayGenerator("g", actor)
        for tries in (1, 2):
            with pytest.raises(GeneratorUnavailableError, match=r"g \(no memory is free\)"):
                await generator.ready()
            assert killed == [(actor, False)] * tries
        await generator.ready()
        assert len(killed) == 2

    asyncio.run(test())


def test_deaths_of_a_process_that_loads_are_reported_one_by_one_and_not_those_that_the_caller_saw(
    restarts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray sends the call that waits for the engine to the next process, so it never fails."""
    monkeypatch.setattr(ray_ports, "LOADING_POLL_SECONDS", 0.01)
    actor = FakeActor(status=[..., _unavailable(), _status("third"), _status("fourth")], collect=_unavailable())

    async def test() -> None:
        generator = RayGenerator("g", actor)
        restarts[:] = [0, 1]
        with pytest.raises(GeneratorUnavailableError, match=r"^g \(while it loaded its engine\)$"):
            await generator.ready()
        restarts[:] = [1, 2]  # it is out of reach after the first, and another died before it answered
        with pytest.raises(GeneratorUnavailableError, match="while it loaded"):
            await generator.ready()
        restarts[:] = [2]
        await generator.ready()
        with pytest.raises(GeneratorUnavailableError, match=r"^g$"):
            await generator.collect(0.0)
        restarts[:] = [3]
        await generator.ready()

    asyncio.run(test())


def test_a_generator_without_restarts_left_says_why_its_engine_did_not_start(
    killed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_ports, "START_PAUSE_SECONDS", 0.0)
    failed = _wrapped(EngineStartError("no memory is free", "1"))
    actor = FakeActor(status=[failed, ActorDiedError()])

    async def test() -> None:
        generator = RayGenerator("g", actor)
        with pytest.raises(GeneratorUnavailableError):
            await generator.ready()
        with pytest.raises(GeneratorDeadError, match=r"g \(no memory is free\)"):
            await generator.ready()

    asyncio.run(test())


def test_asking_a_generator_that_did_not_start_for_its_status_neither_kills_it_nor_ends_the_run(
    killed: list[Any],
) -> None:
    """The board asks every second, and an error it does not know would be the run's."""
    actor = FakeActor(status=_wrapped(EngineStartError("no memory is free", "1")))
    with pytest.raises(GeneratorUnavailableError):
        asyncio.run(RayGenerator("g", actor).status())
    assert killed == []


def test_a_generator_that_was_out_of_reach_gets_work_when_its_last_collect_call_has_run_out() -> None:
    """The abandoned call took finished groups with it, which were waited for until their leases ended. A process of its
    own has no call of another's."""
    processes = ["first", "first", "second"]

    async def test() -> list[float]:
        generator = RayGenerator("g", FakeActor(collect=_unavailable(), status=[*map(_status, processes)]))
        waits = []
        for _ in processes:
            started = asyncio.get_running_loop().time()
            await generator.ready()
            waits.append(asyncio.get_running_loop().time() - started)
            with pytest.raises(GeneratorUnavailableError):
                await generator.collect(0.2)
        return waits

    started, reached_again, restarted = asyncio.run(test())
    assert started < 0.1
    assert reached_again >= 0.2
    assert restarted < 0.1


def test_refused_weights_end_the_run_with_the_refusal(killed: list[Any]) -> None:
    refusal = WeightMismatchError("tensor lm_head.weight differs")
    generator = RayGenerator("g", FakeActor(take_published=_wrapped(refusal)))
    with pytest.raises(WeightMismatchError, match="lm_head"):
        asyncio.run(generator.take_weights(MANIFEST, None))
    assert not killed


SEAT = Seat("group 1", "127.0.0.1", 1, 1.0, 2)


@pytest.mark.parametrize(
    ("of_generator", "of_learner", "seen"),
    [
        (1, None, 1),
        (_wrapped(_unavailable()), None, GeneratorUnavailableError),
        (ActorDiedError(), None, GeneratorDeadError),
        (_wrapped(WeightMismatchError("differs")), None, WeightMismatchError),
        (_wrapped(RunError("the engine failed")), None, GeneratorUnavailableError),
        (_wrapped(TransferInterruptedError("b died")), _wrapped(TransferInterruptedError("b died")), "b died"),
        (..., ActorDiedError(), RunError),
    ],
)
def test_a_failure_in_a_broadcast_is_laid_on_the_one_that_failed(
    of_generator: Any, of_learner: Any, seen: Any, killed: list[Any]
) -> None:
    """The generator's own death came back as an unknown error and ended the run."""
    rank = FakeActor(export=MANIFEST, open_group=SEAT, send=of_learner, give_up=None)
    generator = RayGenerator("g", FakeActor(check_weights=None, take_published=of_generator))

    async def take() -> int:
        publication = await RayLearner([rank], "gloo").export(1)
        assert publication.turn is not None
        await publication.turn(generator)
        return await generator.take_weights(publication.manifest, publication.chunks)

    if isinstance(seen, int):
        assert asyncio.run(take()) == seen
        assert rank.calls == ["export", "open_group", "send"]
        return
    with pytest.raises(TransferInterruptedError if isinstance(seen, str) else seen) as caught:
        asyncio.run(take())
    assert type(caught.value) is (TransferInterruptedError if isinstance(seen, str) else seen)
    assert not isinstance(seen, str) or str(caught.value) == seen


def test_a_generator_gets_handles_of_its_own_where_it_shares_the_learner_s_gpu() -> None:
    rank = FakeActor(export=MANIFEST, share=[{"gpu": "first"}, {"gpu": "second"}])

    async def test() -> list[int]:
        publication = await RayLearner([rank], "ipc").export(1)
        assert publication.turn is None
        generators = [RayGenerator(name, FakeActor(take_published=1)) for name in "ab"]
        return [await each.take_weights(publication.manifest, publication.chunks) for each in generators]

    assert asyncio.run(test()) == [1, 1]
    assert rank.calls == ["export", "share", "share"]


@pytest.mark.parametrize("answer", [..., ActorDiedError(), None])
def test_closing_the_learner_never_fails_a_run(answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that took over ten seconds to close turned a completed run into a failed one."""
    monkeypatch.setattr(ray_ports, "CLOSE_SECONDS", 0.01)
    asyncio.run(RayLearner([FakeActor(close=answer)], "shm").close())


def test_a_learner_that_dies_while_it_hands_out_chunks_is_named() -> None:
    rank = FakeActor(export=MANIFEST, chunk_count=2, chunk=[{}, ActorDiedError()])
    with pytest.raises(RunError, match="a learner process died"):
        asyncio.run(RayLearner([rank], "object_store").export(1))


def test_a_rank_that_died_is_the_cause_of_what_another_says_of_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gloo's words name no rank and no next step."""
    broken = RuntimeError("gloo/transport/tcp/pair.cc:537 Read error: Connection reset by peer")

    class Rank:
        def __init__(self, *answers: Any) -> None:
            self.ready, self._answers = self, answers

        async def remote(self, *arguments: Any) -> None:
            for answer in self._answers:
                await asyncio.sleep(0.01) if answer is None else None
                if isinstance(answer, Exception):
                    raise answer

    ready = RayLearner([Rank(broken), Rank(None, ActorDiedError())], "shm").ready()
    with pytest.raises(
        RunError, match=r"^a learner process died: .*; continue from the last checkpoint with --resume$"
    ):
        asyncio.run(ready)
    with pytest.raises(RuntimeError, match="Connection reset"):
        asyncio.run(RayLearner([Rank(broken), Rank(None)], "shm").ready())
    monkeypatch.setattr(ray_ports, "DEATH_SECONDS", 0.05)
    with pytest.raises(RuntimeError, match="Connection reset"):
        asyncio.run(RayLearner([Rank(broken), Rank(*[None] * 1000)], "shm").ready())


def test_a_constructor_that_failed_is_told_in_its_own_words_on_one_line() -> None:
    """The message once lost everything but its last line, the name of the missing directory included."""
    traceback = (
        "ray::JudgeWorker.__init__() (pid=1, ip=127.0.0.1)\n"
        '  File "judging.py", line 1, in __init__\n'
        "    raise UsageError(text)\n"
        "actors.errors.UsageError: no tokenizer can be loaded from 'nope': no such file\n"
        "Check the network: it may be down; give a directory"
    )
    died = ActorDiedError(RayTaskError("__init__", traceback, UsageError("text")))
    said = "no tokenizer can be loaded from 'nope': no such file Check the network: it may be down; give a directory"
    assert ray_ports.reason(died) == said
    with pytest.raises(UsageError, match=r"the judge could not start: no tokenizer can be loaded from 'nope'"):
        asyncio.run(RayJudge(FakeActor(seconds=died)).ready())


def test_a_rank_out_of_reach_is_told_without_ray_s_codes() -> None:
    lost = ActorUnavailableError("RpcError: RPC error: Socket closed rpc_code: 14", None)
    assert ray_ports.reason(lost).startswith("Ray no longer reaches it, because its process or its host is gone")


def test_an_update_enters_every_rank_with_its_items_and_whether_to_measure_the_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "put", lambda value: ("put", value))
    calls: list[tuple[int, Any]] = []

    class Rank:
        def __init__(self, rank: int) -> None:
            self.update, self._rank = self, rank

        async def remote(self, *arguments: Any) -> str:
            calls.append((self._rank, arguments))
            return f"stats of rank {self._rank}"

    learner = RayLearner([Rank(0), Rank(1)], "shm")
    assert asyncio.run(learner.update(["item"], measure_step=True)) == "stats of rank 0"
    assert calls == [(0, (("put", ["item"]), True)), (1, (("put", ["item"]), True))]
