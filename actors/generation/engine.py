"""One vLLM engine in this process: requests in, completions with behaviour log-probs and token versions out.

One thread drives it step by step, so that new weights take effect exactly between two steps. Uses vLLM's public API
only, imported when an engine is built, after its environment is set. Must not depend on leases, groups or Ray.
"""

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

Chunks = Iterable[Mapping[str, np.ndarray]]  # payload of the `object_store` transport

MAX_REQUESTS = 1024
"""Most requests that run together; more wait inside the engine."""

MAX_BATCHED_TOKENS = 8192
"""Lower limit of tokens per engine step, so that a running batch is prefilled in few steps after a weight sync."""

_MIXED = "mixed"
"""Cache salt of opponents' prompts: the policy's cached blocks lack keys and values of the second model."""

_CANARY = "canary"
_CANARY_PRIORITY, _SAMPLE_PRIORITY = 0, 1


def engine_environment(generators: GeneratorConfig, *, cuda: bool | None = None) -> dict[str, str]:
    """Return the environment variables that an engine's process needs.

    `cuda`: whether it will run on GPUs; None asks torch about this machine.
    """
    if cuda is None:
        import torch

        cuda = torch.cuda.is_available()
    environment = {
        # Keep the engine core in this process, so that nothing is sampled during a weight sync.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        "OMP_NUM_THREADS": str(max(1, int(generators.cpus))),
    }
    if not cuda:
        # Otherwise all tensor-parallel workers are pinned to the first core, and compiling the sampler takes 10 s.
        environment |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCHDYNAMO_DISABLE": "1"}
    return environment


class Engine:
    """A vLLM engine whose weights can be replaced between two steps while requests are running.

    If the opponent needs a second model, the engine holds it beside the policy. Raises UsageError if the directories or
    settings of `spec` do not fit an engine.
    """

    def __init__(self, spec: GeneratorSpec) -> None:
        reference_dir = spec.reference_dir or spec.model_dir
        for directory in (spec.model_dir, reference_dir):
            if not (Path(directory) / "config.json").is_file():
                raise UsageError(f"{directory} is not a Hugging Face model directory: it has no config.json")
            require_safetensors(directory)
        self._spec = spec
        self._eos = eos_token_ids(spec.model_dir)
        self.version = 0  # policy version in use
        self.failure: RunError | None = None
        """Why every further call raises; None while the engine works."""
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
    def busy(self) -> bool:
        """Whether `step` has work to do."""
        return bool(self._running or self._finished)

    def add(
        self, request_id: str, prompt_token_ids: Sequence[int], opponent: bool = False, seed: int | None = None
    ) -> None:
        """Queue one request.

        An `opponent` is sampled from the second model, or the mixture with it, if the engine holds one. `seed` gives
        the request its own random stream instead of the engine's. Raises UsageError if the prompt or the id cannot be
        accepted; the engine keeps working.
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
        """Sample one token of every running request; return the ids and completions of those that finished."""
        self._check_sound()
        finished, self._finished = self._finished, []
        if self._running:
            finished += self._completions(self._llm.step())
        return finished

    def abort(self, request_ids: Iterable[str]) -> None:
        """Drop these requests without returning anything; ignore ids that are not running."""
        known = [request_id for request_id in request_ids if request_id in self._running]
        self._llm.abort_request(known)
        for request_id in known:
            self._running.pop(request_id, None)

    def connect(self, init_info: dict[str, Any]) -> None:
        """Join the learner's `nccl` or `ipc` transfer; block until both have joined. Untested on GPUs."""
        self._check_sound()
        self._llm.collective_rpc("init_weight_transfer_engine", args=(init_info,))

    def load(self, manifest: Manifest, payload: Chunks | dict[str, Any] | None = None) -> None:
        """Replace the weights between two steps; running requests continue, prefilled again under the new weights.

        `payload`: None for `shm`, all chunks for `object_store`, the transfer's update info for `nccl` and `ipc`.

        Raises WeightMismatchError if the publication is refused. If `failure` is then None, the old weights are intact
        and in use; otherwise the model was already changed and every later call raises.
        """
        from actors.generation.weights import check_not_older  # needs torch

        self._check_sound()
        check_not_older(manifest, self.version)
        self._check_canary(manifest)
        try:
            refusal = self._receive(manifest, payload)
            if refusal is None:
                self._adopt(manifest)
        except RunError as error:
            self.failure = error
            raise
        except Exception as error:
            self.failure = RunError(f"loading version {manifest.version} failed halfway: {error}; restart this engine")
            raise self.failure from error
        if refusal is not None:
            raise WeightMismatchError(refusal)

    def _receive(self, manifest: Manifest, payload: Any) -> str | None:
        """Verify the publication and load it; return why it was refused, or None."""
        if manifest.transport in SENT_BY_LEARNER:
            return self._call_workers("receive_publication", manifest, payload)
        chunks = list(payload) if manifest.transport == "object_store" else None
        refusal = self._call_workers("check_publication", manifest, chunks)
        return self._call_workers("load_publication") if refusal is None else refusal

    def _call_workers(self, method: str, *arguments: Any) -> str | None:
        """Call a method of every worker's `WeightReceiver`; return the first refusal, or None."""
        replies = self._llm.collective_rpc(method, args=arguments)
        return next((reply for reply in replies if reply is not None), None)

    def _adopt(self, manifest: Manifest) -> None:
        """Put the loaded weights into use if the canary agrees.

        The canary's steps advance the other requests too; the next `step` returns those that finish.
        """
        # Cached keys and values belong to the old weights. Preempting all requests frees their blocks, without which
        # nothing is dropped, and lets the canary run in the very next step, because its priority is higher.
        if not self._llm.reset_prefix_cache(reset_running_requests=True):
            raise RunError(
                f"version {manifest.version}: the engine did not drop what it cached under the previous weights; "
                "restart this generator"
            )
        self._llm.set_weight_version(str(manifest.version))
        tolerance = self._spec.generators.log_prob_tolerance
        scored, finished = self._score(manifest.canary.token_ids)
        difference = float(np.max(np.abs(np.subtract(scored, manifest.canary.logprobs))))
        if not difference <= tolerance:  # also true for NaN
            raise WeightMismatchError(
                f"version {manifest.version}: engine and learner differ by {difference:.4g} nats on the canary, "
                f"{tolerance:g} are allowed; rollouts since then are discarded. Restart this generator; if it recurs, "
                f"compare generators.dtype {self._spec.generators.dtype} with learner.dtype, or raise "
                "generators.canary_tolerance if the difference is only rounding"
            )
        self._finished += finished
        self.version = manifest.version

    def _score(self, token_ids: Sequence[int]) -> tuple[list[float], list[tuple[str, Completion]]]:
        """Return the log-probs of `token_ids` from the second on, and the requests that finished meanwhile."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=self._spec.sampling.temperature)
        self._llm.add_request(_CANARY, {"prompt_token_ids": list(token_ids)}, params, priority=_CANARY_PRIORITY)
        finished: list[tuple[str, Completion]] = []
        while True:
            outputs = self._llm.step()
            finished += self._completions(outputs)
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
        if self.failure is not None:
            raise self.failure

    def _check_prompt(self, request_id: str, prompt_token_ids: Sequence[int]) -> None:
        needed = len(prompt_token_ids) + self._spec.sampling.max_new_tokens
        if not prompt_token_ids:
            raise UsageError(f"request {request_id!r} has an empty prompt; give it at least one token")
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
            raise UsageError(f"request id {request_id!r} is taken; use a new one")

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
            logprobs=0,  # only of the sampled token
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
                logprobs_mode="processed_logprobs",  # of the sampling distribution, temperature included
                scheduling_policy="priority",
                async_scheduling=False,  # a step in flight would get the version of the next weights
                worker_extension_cls="actors.generation.weight_receiver.WeightReceiver",
                disable_log_stats=True,
                # Cached prefixes change the shapes of computations, and with them the rounding.
                enable_prefix_caching=not spec.deterministic,
                **options,
            )
            return LLMEngine.from_engine_args(arguments)
        except ValueError as error:
            raise UsageError(
                f"vLLM refuses {model_dir} with generators.max_model_len {config.max_model_len}, dtype {config.dtype}, "
                f"kv_cache_mib {config.kv_cache_mib}: {error}; change the setting that it names"
            ) from error

    def _mixture_options(self, model_dir: str, reference_dir: str) -> dict[str, Any]:
        from actors.generation import mixture

        # The mixture's logits processor supports only vLLM's first model runner, the only one on CPU.
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
        mixture.register()
        return mixture.engine_arguments(
            model_dir, reference_dir, skip_reference=True, published_reference=self._spec.publishes_average
        )


@contextlib.contextmanager
def _gc_paused() -> Iterator[None]:
    """Exempt objects made by imports from garbage collection, now and later.

    They live as long as the process; scanning vLLM's takes a third of an engine's start on CPU.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collecting:
            gc.enable()


def eos_token_ids(model_dir: str | Path) -> frozenset[int]:
    """Return every end-of-sequence id in a model directory's generation config, or else in its config."""
    for name in ("generation_config.json", "config.json"):
        path = Path(model_dir) / name
        ids = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
        if ids is not None:
            return frozenset([ids] if isinstance(ids, int) else ids)
    return frozenset()
