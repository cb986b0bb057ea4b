"""One vLLM engine in this process: requests in, completions with behaviour log-probs and token versions out.

Driven step by step by one thread, so that new weights land exactly between two steps. vLLM's public API only, and it is
imported when an engine is built, after its environment was set. It must not know leases, groups or ray.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actors.errors import RunError, UsageError, WeightMismatchError
from actors.generation.config import GeneratorConfig, GeneratorSpec
from actors.hub import require_safetensors
from actors.records import SENT_BY_LEARNER, Completion, Manifest

Chunks = Iterable[Mapping[str, np.ndarray]]
"""Payload of the `object_store` transport."""

MAX_REQUESTS = 1024
"""Requests that run together at most, whatever the number of leases; more wait inside the engine."""

MAX_BATCHED_TOKENS = 8192
"""Tokens per engine step at least: a running batch is prefilled again after an update in few steps."""

_MIXED = "mixed"
"""Cache salt of opponents' prompts. The policy's cached blocks hold no keys and values of the second model."""

_CANARY = "canary"
_CANARY_PRIORITY, _SAMPLE_PRIORITY = 0, 1


def engine_environment(generators: GeneratorConfig, *, cuda: bool | None = None) -> dict[str, str]:
    """Environment that an engine's process needs, for a Ray actor's `runtime_env` or this process.

    Args:
        generators: the engine's settings.
        cuda: whether it will run on GPUs; unset asks torch about this machine.
    """
    if cuda is None:
        import torch

        cuda = torch.cuda.is_available()
    environment = {
        # Engine core in this process: nothing samples between the steps of an update.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        "OMP_NUM_THREADS": str(max(1, int(generators.cpus))),
    }
    if not cuda:
        # Tensor-parallel workers would all be pinned to the first core; compiling the sampler costs ten seconds.
        environment |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCHDYNAMO_DISABLE": "1"}
    return environment


class Engine:
    """A vLLM engine whose weights can be replaced between two steps while its requests are kept.

    If the opponent needs a second model, the engine holds it beside the policy. Raises UsageError if directories or
    settings of `spec` do not make an engine.
    """

    def __init__(self, spec: GeneratorSpec) -> None:
        reference_dir = spec.reference_dir or spec.model_dir
        for directory in (spec.model_dir, reference_dir):
            if not (Path(directory) / "config.json").is_file():
                raise UsageError(f"{directory} is not a Hugging Face model directory: it has no config.json")
            require_safetensors(directory)
        self._spec = spec
        self._eos = eos_token_ids(spec.model_dir)
        self._version = 0
        self._failure: RunError | None = None
        self._running: dict[str, bool] = {}  # by request id: whether it samples an opponent
        self._finished: list[tuple[str, Completion]] = []
        os.environ.update(engine_environment(spec.generators))
        self._engine_beta = None if spec.opponent is None else spec.opponent.engine_beta
        self._llm = self._build(str(spec.model_dir), str(reference_dir))
        self._llm.set_weight_version("0")
        self._vocab_size = self._llm.model_config.get_vocab_size()
        self._params = self._sampling_params()
        self._opponent_params = self._sampling_params(self._engine_beta)

    @property
    def version(self) -> int:
        """The policy version that samples now."""
        return self._version

    @property
    def failure(self) -> RunError | None:
        """Why this engine must not be used any more; None while it is sound."""
        return self._failure

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._running or self._finished)

    def add(
        self, request_id: str, prompt_token_ids: Sequence[int], opponent: bool = False, seed: int | None = None
    ) -> None:
        """Queues one request.

        Args:
            request_id: not in use.
            prompt_token_ids: of the model's vocabulary.
            opponent: sample an opponent: from the second model or the mixture with it, where there is one, else from
                the policy.
            seed: of random numbers of its own; unset: those of the engine, which all requests share.

        Raises:
            UsageError: the prompt is empty, too long, outside the vocabulary, or the id is taken; the engine goes on.
        """
        self._check_sound()
        self._check_prompt(request_id, prompt_token_ids)
        prompt: dict[str, Any] = {"prompt_token_ids": list(prompt_token_ids)}
        if opponent and self._engine_beta is not None:
            prompt["cache_salt"] = _MIXED
        params = self._opponent_params if opponent else self._params
        if seed is not None:
            params = params.clone()
            params.seed = seed
        self._llm.add_request(request_id, prompt, params, priority=_SAMPLE_PRIORITY)
        self._running[request_id] = opponent

    def step(self) -> list[tuple[str, Completion]]:
        """Samples one token of every running request; returns those that finished, with their ids.

        Raises:
            RunError: an earlier `load` left the engine unusable.
        """
        self._check_sound()
        finished, self._finished = self._finished, []
        if self._running:
            finished += self._completions(self._llm.step())
        return finished

    def abort(self, request_ids: Iterable[str]) -> None:
        """Forgets these requests; nothing of them is returned. Ids that are not running are ignored."""
        known = [request_id for request_id in request_ids if request_id in self._running]
        self._llm.abort_request(known)
        for request_id in known:
            self._running.pop(request_id, None)

    def connect(self, init_info: dict[str, Any]) -> None:
        """Joins the learner's `nccl` or `ipc` transfer; blocks until the learner has joined too.

        Not run on a GPU so far.
        """
        self._check_sound()
        self._llm.collective_rpc("init_weight_transfer_engine", args=(init_info,))

    def load(self, manifest: Manifest, payload: Chunks | dict[str, Any] | None = None) -> None:
        """Replaces the weights between two steps. Running requests are kept: their tokens so far are prefilled again
        under the new weights.

        Args:
            manifest: what is published; its canary log-probs are at temperature 1.
            payload: `shm`: None; `object_store`: all chunks; `nccl` and `ipc`: the transfer's update info.

        Raises:
            WeightMismatchError: refused. When `failure` is None the old weights are untouched and at work; otherwise
                the model was already changed and every later call raises.
        """
        from actors.generation.weights import check_not_older  # needs torch

        self._check_sound()
        check_not_older(manifest, self._version)
        self._check_canary(manifest)
        try:
            refusal = self._receive(manifest, payload)
            if refusal is None:
                self._adopt(manifest)
        except RunError as error:
            self._failure = error
            raise
        except Exception as error:
            self._failure = RunError(f"loading version {manifest.version} failed halfway: {error}; restart this engine")
            raise self._failure from error
        if refusal is not None:
            raise WeightMismatchError(refusal)

    def _receive(self, manifest: Manifest, payload: Any) -> str | None:
        if manifest.transport in SENT_BY_LEARNER:
            replies = self._llm.collective_rpc("receive_publication", args=(manifest, payload))
            return next((reply for reply in replies if reply is not None), None)
        chunks = list(payload) if manifest.transport == "object_store" else None
        replies = self._llm.collective_rpc("check_publication", args=(manifest, chunks))
        refusal = next((reply for reply in replies if reply is not None), None)
        if refusal is None:
            self._llm.collective_rpc("load_publication")
        return refusal

    def _adopt(self, manifest: Manifest) -> None:
        """Makes the loaded weights the ones in use, if the canary agrees.

        The canary's steps advance the other requests too; what they finish is handed out by the next `step`.
        """
        # Cached keys and values belong to the old weights. Preempting everything frees their blocks, without which
        # nothing is dropped, and lets the canary, which has the better priority, run in the very next step.
        if not self._llm.reset_prefix_cache(reset_running_requests=True):
            raise RunError(
                f"version {manifest.version}: the engine did not drop what it cached under the weights before; restart "
                "this generator"
            )
        self._llm.set_weight_version(str(manifest.version))
        tolerance = self._spec.generators.log_prob_tolerance
        scored, finished = self._score(manifest.canary.token_ids)
        difference = float(np.max(np.abs(np.subtract(scored, manifest.canary.logprobs))))
        if not difference <= tolerance:  # also true for NaN
            raise WeightMismatchError(
                f"version {manifest.version}: engine and learner differ by {difference:.4g} nats on the canary, "
                f"{tolerance:g} are allowed; what was sampled since is void. Restart this generator; if it recurs, "
                f"compare generators.dtype {self._spec.generators.dtype} with learner.dtype, or raise "
                "generators.canary_tolerance if the difference is rounding"
            )
        self._finished += finished
        self._version = manifest.version

    def _score(self, token_ids: Sequence[int]) -> tuple[list[float], list[tuple[str, Completion]]]:
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=self._spec.sampling.temperature)
        self._llm.add_request(_CANARY, {"prompt_token_ids": list(token_ids)}, params, priority=_CANARY_PRIORITY)
        finished: list[tuple[str, Completion]] = []
        while True:
            outputs = self._llm.step()
            finished += self._completions(output for output in outputs if output.request_id != _CANARY)
            for output in outputs:
                if output.request_id == _CANARY and output.finished:
                    scores = zip(token_ids[1:], output.prompt_logprobs[1:], strict=True)
                    return [position[token].logprob for token, position in scores], finished

    def _completions(self, outputs: Iterable[Any]) -> list[tuple[str, Completion]]:
        finished = []
        for output in outputs:
            if output.finished and output.request_id in self._running:
                opponent = self._running.pop(output.request_id)
                finished.append((output.request_id, self._completion(output.outputs[0], opponent)))
        return finished

    def _completion(self, output: Any, opponent: bool) -> Completion:
        if output.finish_reason not in ("stop", "length"):
            raise RunError(f"the engine ended a request with {output.finish_reason!r}; see its log")
        token_ids = tuple(output.token_ids)
        return Completion(
            token_ids=token_ids,
            logprobs=tuple(output.logprobs.logprobs),
            versions=tuple(int(span.version) for span in output.weight_versions for _ in range(span.start, span.end)),
            text=output.text,
            finished=token_ids[-1] in self._eos,
            opponent=opponent,
        )

    def _check_sound(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _check_prompt(self, request_id: str, prompt_token_ids: Sequence[int]) -> None:
        needed = len(prompt_token_ids) + self._spec.sampling.max_new_tokens
        if not prompt_token_ids:
            raise UsageError(f"request {request_id!r} has an empty prompt; every prompt needs at least one token")
        if needed > self._spec.generators.max_model_len:
            raise UsageError(
                f"request {request_id!r} has a prompt of {len(prompt_token_ids)} tokens, which with "
                f"sampling.max_new_tokens {self._spec.sampling.max_new_tokens} makes {needed}, more than "
                f"generators.max_model_len {self._spec.generators.max_model_len}; raise the last or shorten the prompt"
            )
        if not 0 <= min(prompt_token_ids) <= max(prompt_token_ids) < self._vocab_size:
            raise UsageError(
                f"request {request_id!r} has token ids outside the vocabulary of {self._vocab_size}; use the tokenizer "
                "that belongs to the model"
            )
        if request_id in self._running or request_id == _CANARY:
            raise UsageError(f"request id {request_id!r} is taken; give every request its own")

    def _check_canary(self, manifest: Manifest) -> None:
        length = len(manifest.canary.token_ids)
        if not 2 <= length < self._spec.generators.max_model_len:
            raise UsageError(
                f"a canary of {length} tokens cannot be scored: it needs at least 2 and fewer than "
                f"generators.max_model_len {self._spec.generators.max_model_len}; change publication.canary_tokens"
            )

    def _sampling_params(self, beta: float | None = None) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        from actors.generation.mixture import BETA

        return SamplingParams(
            temperature=self._spec.sampling.temperature,
            max_tokens=self._spec.sampling.max_new_tokens,
            stop_token_ids=sorted(self._eos | set(self._spec.sampling.stop_token_ids)),
            logprobs=0,  # of the sampled token alone
            flat_logprobs=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=None if beta is None else {BETA: beta},
        )

    def _build(self, model_dir: str, reference_dir: str) -> Any:
        with _gc_paused():
            from vllm import EngineArgs, LLMEngine
            from vllm.config import WeightTransferConfig
            from vllm.platforms import current_platform

        spec, config, opponent = self._spec, self._spec.generators, self._spec.opponent
        drawn = spec.sampling.completions_per_prompt
        drawn += opponent.completions_per_prompt if opponent is not None and opponent.sampled else 0
        requests = min(MAX_REQUESTS, config.max_running_prompts * drawn + 1)
        options = {} if self._engine_beta is None else self._mixture_options(model_dir, reference_dir)
        if current_platform.is_cpu():
            options |= {"enforce_eager": True, "kv_cache_memory_bytes": config.kv_cache_mib << 20}
        else:
            options |= {"enforce_eager": config.enforce_eager, "gpu_memory_utilization": config.gpu_memory_utilization}
        if config.tensor_parallel_size > 1:
            options["distributed_executor_backend"] = "mp"
        if spec.transport in SENT_BY_LEARNER:
            options["weight_transfer_config"] = WeightTransferConfig(backend=spec.transport)
        try:
            arguments = EngineArgs(
                model=model_dir,
                tokenizer=spec.tokenizer,
                trust_remote_code=False,
                load_format="safetensors",
                dtype=config.dtype,
                max_model_len=config.max_model_len,
                max_num_seqs=requests,
                max_num_batched_tokens=max(MAX_BATCHED_TOKENS, config.max_model_len, requests),
                tensor_parallel_size=config.tensor_parallel_size,
                seed=spec.seed,
                logprobs_mode="processed_logprobs",  # of the distribution that is sampled from, temperature included
                scheduling_policy="priority",
                async_scheduling=False,  # a step in flight would carry the label of the next weights
                worker_extension_cls="actors.generation.weight_receiver.WeightReceiver",
                disable_log_stats=True,
                # What a prompt finds cached changes the shapes that are computed, and with them the rounding.
                enable_prefix_caching=not spec.deterministic,
                **options,
            )
            return LLMEngine.from_engine_args(arguments)
        except ValueError as error:
            raise UsageError(
                f"vLLM refuses {model_dir} with generators.max_model_len {config.max_model_len}, dtype {config.dtype}, "
                f"kv_cache_mib {config.kv_cache_mib}: {error}"
            ) from error

    def _mixture_options(self, model_dir: str, reference_dir: str) -> dict[str, Any]:
        from actors.generation import mixture

        # The mixture's logits processor is written for vLLM's first model runner, the only one on CPU.
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
        mixture.register()
        published = self._spec.opponent is not None and self._spec.opponent.kind == "ema"
        return mixture.engine_arguments(model_dir, reference_dir, skip_reference=True, published_reference=published)


@contextlib.contextmanager
def _gc_paused() -> Iterator[None]:
    """For imports: what they define lives as long as the process, and Python's garbage collector would look through it
    again and again, meanwhile and later. With vLLM that is a third of an engine's start on CPU."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collecting:
            gc.enable()


def eos_token_ids(model_dir: str | Path) -> frozenset[int]:
    """Every end-of-sequence id that a model directory names, in its generation config or else its config."""
    for name in ("generation_config.json", "config.json"):
        path = Path(model_dir) / name
        ids = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
        if ids is not None:
            return frozenset([ids] if isinstance(ids, int) else ids)
    return frozenset()
