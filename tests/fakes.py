"""In-process stand-ins for generators, judge and learner: the whole loop runs in a test, without Ray or engines."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from actors.errors import UsageError, WeightMismatchError
from actors.generation.config import GeneratorConfig, GeneratorSpec, SamplingConfig
from actors.records import (
    Canary,
    Completion,
    Failure,
    Game,
    GeneratorStatus,
    Group,
    Judgement,
    Lease,
    Manifest,
    Pair,
    Prompt,
)
from launch.run.protocols import GeneratorDeadError, GeneratorUnavailableError, Publication
from learner.records import StageStats


class FakePrompts:
    """Prompt `i` at position `i`."""

    def prompt(self, position: int) -> Prompt:
        return Prompt(f"fake:{position}", (1, 2, 3), f"prompt {position}")


class FakeGenerator:
    """A generator in this process: answers what it holds every `seconds`, at its current version.

    A group has two completions of the policy. With `opponents`, as many of these too, where a lease asks for them.
    """

    def __init__(
        self,
        name: str,
        *,
        seconds: float = 0.001,
        opponents: int = 0,
        die_after: int | None = None,
        dead_for_good: bool = False,
    ) -> None:
        self.name = name
        self.answered: list[Lease] = []
        self.version = 0
        self.loads: list[int] = []
        self.deaths = 0
        self.loads_at_death: int | None = None
        self._held: list[Lease] = []
        self._seconds = seconds
        self._opponents = opponents
        self._die_after = die_after
        self._dead_for_good = dead_for_good

    async def ready(self) -> None:
        await asyncio.sleep(0)

    async def submit(self, leases: Sequence[Lease]) -> None:
        self._held.extend(leases)

    async def collect(self, timeout_seconds: float) -> list[Group | Failure]:
        await asyncio.sleep(self._seconds)
        if self._die_after is not None and len(self.answered) >= self._die_after:
            self._die_after, self._held, self.version = None, [], 0
            self.deaths, self.loads_at_death = self.deaths + 1, len(self.loads)
            raise (GeneratorDeadError if self._dead_for_good else GeneratorUnavailableError)(self.name)
        startable = [lease for lease in self._held if lease.min_version <= self.version]
        self._held = [lease for lease in self._held if lease.min_version > self.version]
        self.answered += startable
        return [Group(lease, self._completions(lease)) for lease in startable]

    async def take_weights(self, manifest: Manifest, chunks: Any) -> int:
        await asyncio.sleep(0.001)
        self.version = manifest.version
        self.loads.append(manifest.version)
        return manifest.version

    async def status(self) -> GeneratorStatus:
        return GeneratorStatus(self.name, self.version, 0, len(self._held), 0, 0.0, 0.0, 0.0, process="0")

    def _completions(self, lease: Lease) -> tuple[Completion, ...]:
        players = 0 if lease.draw == "opponents" else 2
        opponents = 0 if lease.draw == "policy" else self._opponents
        versions = (self.version, self.version)
        return tuple(
            Completion((5 + k, 2), (-1.0, -0.5), versions, "x" * k, finished=True, opponent=opponent)
            for opponent, count in ((False, players), (True, opponents))
            for k in range(count)
        )


class FakeJudge:
    """Scores a completion by the length of its text."""

    async def judge(self, groups: Sequence[Group]) -> list[Group | Failure]:
        await asyncio.sleep(0)
        return [
            replace(group, judgement=Judgement(tuple(float(len(c.text)) for c in group.completions)))
            for group in groups
        ]

    async def ready(self) -> None:
        await asyncio.sleep(0)

    async def seconds(self) -> float:
        return 0.0

    async def figures(self) -> dict[str, float]:
        return {"groups": 7.0, "failed_groups": 0.0}


@dataclass
class FakeStats:
    loss: float = 0.5
    lr: float = 1e-3
    skipped: bool = False
    log_ratio_max: float = 0.0
    step_size: float | None = None


class FakeLearner:
    """Counts what it is asked to do."""

    host = "127.0.0.1"

    def __init__(self, update_seconds: float = 0.002) -> None:
        self.batches: list[list[Any]] = []
        """Pairs or games."""
        self.measured: list[bool] = []
        self.exported: list[int] = []
        self.retired: list[int] = []
        self._update_seconds = update_seconds

    async def update(self, items: Sequence[Pair] | Sequence[Game], measure_step: bool = False) -> FakeStats:
        await asyncio.sleep(self._update_seconds)
        self.batches.append(list(items))
        self.measured.append(measure_step)
        return FakeStats()

    async def export(self, version: int) -> Publication:
        self.exported.append(version)
        return Publication(Manifest(version, (), Canary((), ()), "shm"))

    async def retire(self, version: int) -> None:
        self.retired.append(version)

    async def score(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Any]:
        return [([-1.0] * len(response), [-1.5] * len(response)) for _, response in sequences]


def group_of(lease: Lease, *versions: tuple[int, ...]) -> Group:
    """An unjudged group with one completion for each tuple of token versions."""
    completions = tuple(
        Completion(tuple(range(len(each))), tuple(-0.1 * (i + 1) for i in range(len(each))), each, "", finished=True)
        for each in versions
    )
    return Group(lease, completions)


def judged_group(lease: Lease, *versions: tuple[int, ...]) -> Group:
    """`group_of`, with the scores 0, 1, 2, ..."""
    return replace(group_of(lease, *versions), judgement=Judgement(tuple(float(i) for i in range(len(versions)))))


def spec_of(
    model_dir: Any = "unused",
    generators: GeneratorConfig | None = None,
    sampling: SamplingConfig | None = None,
    **settings: Any,
) -> GeneratorSpec:
    """A generator with default settings, but those given."""
    generators, sampling = generators or GeneratorConfig(), sampling or SamplingConfig()
    return GeneratorSpec(model_dir=model_dir, generators=generators, sampling=sampling, **settings)


class FakeEngine:
    """`Engine` without a model: every request finishes after `steps` steps with that many tokens.

    Tests set `break_next_step` or `refuse_next_load` to an exception; `load` of version 13 breaks the engine for good.
    """

    def __init__(self, *_: Any, steps: int = 3, **__: Any) -> None:
        self.version = 0
        self.failure: Any = None
        self.break_next_step: Exception | None = None
        self.refuse_next_load: Exception | None = None
        self.aborted: list[str] = []
        self.seeds: dict[str, int | None] = {}
        self._steps = steps
        self._versions: dict[str, list[int]] = {}
        self._opponents: set[str] = set()

    @property
    def busy(self) -> bool:
        return bool(self._versions)

    def add(
        self, request_id: str, prompt_token_ids: Sequence[int], opponent: bool = False, seed: int | None = None
    ) -> None:
        self.seeds[request_id] = seed
        if not prompt_token_ids:
            raise UsageError("empty prompt")
        self._versions[request_id] = []
        self._opponents |= {request_id} if opponent else set()

    def abort(self, request_ids: Sequence[str]) -> None:
        self.aborted.extend(request_ids)

    def step(self) -> list[tuple[str, Completion]]:
        time.sleep(0.001)
        if self.break_next_step is not None:
            raise self.break_next_step
        for versions in self._versions.values():
            versions.append(self.version)
        done = {name: v for name, v in self._versions.items() if len(v) == self._steps}
        self._versions = {name: v for name, v in self._versions.items() if name not in done}
        return [
            (name, Completion((7,) * len(v), (-1.0,) * len(v), tuple(v), name, True, name in self._opponents))
            for name, v in done.items()
        ]

    def connect(self, init_info: dict[str, Any]) -> None: ...

    def load(self, manifest: Manifest, payload: Any = None) -> None:
        time.sleep(0.002)
        if self.refuse_next_load is not None:
            refusal, self.refuse_next_load = self.refuse_next_load, None
            raise refusal
        if manifest.version == 13:
            self.failure = WeightMismatchError("canary differs")
            raise self.failure
        self.version = manifest.version


class FakeRanks:
    """All ranks of a stage as one: nothing is trained, and the held-out losses are told beforehand.

    `held_out` gives the loss of each evaluation in turn, the last one for ever; with none, nothing is held out.
    `on_advance` is called with the number of updates after each `advance`.
    """

    def __init__(self, held_out: Sequence[float] = (), on_advance: Callable[[int], None] | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        """Method and arguments, paths left out."""
        self.updates = 0
        self._held_out, self._on_advance = list(held_out), on_advance

    async def ready(self) -> None: ...

    async def close(self) -> None: ...

    async def advance(self, updates: int) -> list[StageStats]:
        self.calls.append(("advance", updates))
        self.updates += updates
        done = range(self.updates - updates + 1, self.updates + 1)
        if self._on_advance is not None:
            self._on_advance(self.updates)
        await asyncio.sleep(0.01)  # signals arrive
        common = {"metrics": {}, "grad_norm": 1.0, "lr": 0.1, "tokens": 10, "padded_tokens": 12, "seconds": 0.5}
        return [
            StageStats(update=update, loss=1 / update, **common, skipped=False, skipped_updates=0) for update in done
        ]

    async def evaluate(self) -> dict[str, float]:
        self.calls.append(("evaluate",))
        if not self._held_out:
            return {}
        loss = self._held_out.pop(0) if len(self._held_out) > 1 else self._held_out[0]
        return {"loss": loss, "tokens": 5.0, "padded_tokens": 6.0}

    async def save(self, stage: Path) -> None:
        self.calls.append(("save",))
        for part in ("deepspeed", "hf"):
            (stage / part).mkdir()
            (stage / part / "updates").write_text(str(self.updates))

    async def load(self, checkpoint: Path) -> None:
        self.calls.append(("load",))
        self.updates = int((checkpoint / "deepspeed" / "updates").read_text())

    async def save_pretrained(self, directory: Path) -> None:
        self.calls.append(("save_pretrained",))
        directory.mkdir(exist_ok=True)
        (directory / "updates").write_text(str(self.updates))

    async def finish(self, directory: Path) -> dict[str, Any]:
        return {}


def tiny_llama(directory: Path, *, seed: int, tied: bool = False, vocab_size: int = 96) -> Any:
    """Saves a random two-layer Llama (hidden 64, float32) with a tokenizer of `vocab_size` words, and returns it.

    Its weights are large for its size, so that its distributions are peaked and two of them differ by nats.
    """
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,  # vLLM's CPU attention has no heads below 32 dimensions
        num_key_value_heads=1,
        max_position_embeddings=512,
        initializer_range=0.1,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(directory)
    words = {"<s>": 0, "</s>": 1, **{f"w{i}": i for i in range(2, vocab_size)}}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<s>")), bos_token="<s>", eos_token="</s>"
    )
    tokenizer.save_pretrained(directory)
    return model


def tiny_preference_model(
    directory: Path, kind: Any, *, skew_blocks: int = 0, temperature: float = 1.0, positions: int = 64
) -> Any:
    """Saves a random preference model over the embedded world's words, with its tokenizer, and returns it.

    Its weights are so large that its preferences are far from even.
    """
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from actors import world
    from actors.judges.models.preference_network import PreferenceForm, write_form

    form = PreferenceForm(kind, world.EOS, skew_blocks, temperature)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(world.VOCABULARY),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=positions,
        num_labels=form.outputs,
        pad_token_id=world.PAD,
        bos_token_id=world.BOS,
        eos_token_id=world.EOS,
        initializer_range=0.5,
    )
    model = LlamaForSequenceClassification(config).eval()
    model.save_pretrained(directory)
    world.tokenizer().save_pretrained(directory)
    write_form(directory, form)
    return model


def make_group(
    texts: Sequence[str],
    *,
    index: int = 0,
    answer: str | None = None,
    finished: Sequence[bool] | None = None,
    judgement: Judgement | None = None,
) -> Group:
    """A group whose completion `i` says `texts[i]` in token ids (10 + i, 2), all finished unless told otherwise."""
    ends = finished or [True] * len(texts)
    completions = tuple(
        Completion((10 + i, 2), (-1.0, -0.5), (0, 0), text, end)
        for i, (text, end) in enumerate(zip(texts, ends, strict=True))
    )
    prompt = Prompt(f"fake:{index}", (1, 3), f"prompt {index}", answer=answer)
    return Group(Lease(index, 0, prompt, 0, 60.0), completions, judgement)


class FakeServer:
    """An HTTP server on a free port of this machine; a context.

    It answers request n, whose JSON is `body`, by `script(n, body)`: a status, headers and what to send, which is JSON
    unless it is bytes. None is silence until the end.
    """

    def __init__(self, script: Any) -> None:
        self.bodies: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.most_at_a_time = 0
        self._script = script
        self._at_a_time = 0
        self._lock = threading.Lock()
        self._end = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # one packet for headers and body, else each answer takes 40 ms

            def do_POST(self) -> None:
                with contextlib.suppress(ConnectionError):
                    server._answer(self)

            def log_message(self, *_: Any) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> FakeServer:
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._end.set()
        self._http.shutdown()
        self._http.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        with self._lock:
            number = len(self.bodies)
            self.bodies.append(body)
            self.headers.append(dict(request.headers))
            self.paths.append(request.path)
            self._at_a_time += 1
            self.most_at_a_time = max(self.most_at_a_time, self._at_a_time)
        try:
            answer = self._script(number, body)
            if answer is None:
                self._end.wait()
                return
        finally:
            with self._lock:
                self._at_a_time -= 1
        status, headers, content = answer
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(data)


class ScriptedJudge:
    """Answers call `n` with `script(n, groups)`: judgements, an error to raise, or None for silence."""

    def __init__(self, script: Any) -> None:
        self.calls: list[list[int]] = []
        self._script = script

    async def judge(self, groups: Sequence[Group]) -> Any:
        self.calls.append([group.lease.index for group in groups])
        answer = self._script(len(self.calls) - 1, groups)
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, BaseException):
            raise answer
        return answer
