"""One vLLM engine in this process: requests in, completions with behaviour log-probs and token versions out.

One thread drives it step by step, so that new weights take effect exactly between two steps. Uses vLLM's public API
only, imported when an engine is built, after its environment is set. Must not depend on leases, groups or Ray.
"""

import contextlib
import gc
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from actors.errors import RunError, TransferInterruptedError, UsageError, WeightMismatchError
from actors.generation import start_files
from actors.generation.config import GeneratorConfig, GeneratorSpec, adapter_problem
from actors.generation.lora.arguments import adapter_request, engine_arguments, not_applied
from actors.generation.proof.canary import CanaryCheck, newest_canary
from actors.generation.requests import Requests
from actors.hub import require_safetensors
from actors.records import Canary, Completion, Manifest

MAX_REQUESTS = 1024
"""Most requests that run together; more wait inside the engine."""

MAX_BATCHED_TOKENS = 8192
"""Lower limit of tokens per engine step, so that a running batch is prefilled in few steps after a weight sync."""

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
        # oneDNN keeps a kernel, a quarter of a MiB, for each number of tokens in a step: 1,024 of them by default.
        environment["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = os.environ.get("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    return environment


class Engine:
    """A vLLM engine whose weights can be replaced between two steps while requests are running.

    If the opponent needs a second model, the engine holds it beside the policy. Raises UsageError if the directories or
    settings of `spec` do not fit an engine.
    """

    def __init__(self, spec: GeneratorSpec) -> None:
        if spec.adapter is not None and spec.publishes_average:
            raise UsageError(
                "the opponent's kind is ema, but an average of adapted weights is no adapter; set learner.lora.publish "
                "to merged"
            )
        reference_dir = spec.reference_dir or spec.model_dir
        for directory in (spec.model_dir, reference_dir):
            if not (Path(directory) / "config.json").is_file():
                raise UsageError(f"{directory} is not a Hugging Face model directory: it has no config.json")
            require_safetensors(directory)
        self._spec = spec
        self.version = 0  # policy version in use
        self.failure: RunError | None = None
        """Why every further call raises; None while the engine works."""
        self._canaries = CanaryCheck(spec.generators)
        self._running: dict[str, bool] = {}  # by request id: whether it samples an opponent
        self._finished: list[tuple[str, Completion]] = []
        os.environ.update(engine_environment(spec.generators))
        self._engine_beta = spec.engine_beta
        with start_files.noted():
            self._llm = self._build(str(spec.model_dir), str(reference_dir))
            self._remove_start_files()
        self._adapter = None if spec.adapter is None else self._begin_adapters()
        self._llm.set_weight_version("0")
        self._requests = Requests(spec, self._llm.get_tokenizer(), self._llm.model_config.get_vocab_size())

    def _begin_adapters(self) -> Any:
        """Put version 0 in place; return what every request carries. Raises UsageError if vLLM cannot apply it."""
        refusal = self._call_workers("begin_adapters", self._spec.adapter, self._expected_adapter())
        if refusal is not None:
            raise UsageError(not_applied(str(self._spec.model_dir), refusal))
        return adapter_request()

    def _expected_adapter(self) -> Any:
        from actors.generation.weights import expected_tensors

        return expected_tensors(self._spec.model_dir, adapter=self._spec.adapter)

    def _remove_start_files(self) -> None:
        start_files.expect_missing()
        names = {*start_files.of_process(), *itertools.chain(*self._llm.collective_rpc("start_files"))}
        start_files.remove(names)
        start_files.forget(names)

    @property
    def tokenizer(self) -> Any:
        return self._requests.tokenizer

    @property
    def ends(self) -> tuple[int, ...]:
        """Token ids that end an answer."""
        return self._requests.ends

    @property
    def gap(self) -> float | None:
        """Largest difference (nats) from the learner on a rollout, both with the weights in use; None if unknown."""
        return self._canaries.gap

    @property
    def busy(self) -> bool:
        """Whether `step` has work to do."""
        return bool(self._running or self._finished)

    def add(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        opponent: bool = False,
        seed: int | None = None,
        max_tokens: int | None = None,
    ) -> None:
        """Queue one request of at most `max_tokens` new tokens; None: `sampling.max_new_tokens`.

        An `opponent` is sampled from the second model, or the mixture with it, if the engine holds one. `seed` gives
        the request its own random stream instead of the engine's. Raises UsageError if the prompt or the id cannot be
        accepted; the engine keeps working.
        """
        self._check_sound()
        prompt, params = self._requests.checked(request_id, prompt_token_ids, opponent, seed, max_tokens)
        if request_id in self._running or request_id == _CANARY:
            raise UsageError(f"request id {request_id!r} is taken; use a new one")
        adapter = None if opponent and self._spec.opponent_is_base else self._adapter
        self._llm.add_request(request_id, prompt, params, lora_request=adapter, priority=_SAMPLE_PRIORITY)
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

    def load(self, manifest: Manifest, payload: Sequence[Any] | None = None) -> None:
        """Replace the weights between two steps; running requests continue, prefilled again under the new weights.

        `payload`: what the transport's receiver needs beside the manifest; see `receivers.py`.

        Raises WeightMismatchError if the publication is refused, TransferInterruptedError if another generator's
        failure ended its transfer. If `failure` is then None, the old weights are intact and in use; otherwise the
        model was already changed and every later call raises.
        """
        from actors.generation.weights import check_not_older  # needs torch

        self._check_sound()
        check_not_older(manifest, self.version)
        self._canaries.check_before(manifest)
        try:
            refusal = self._call_workers("check_publication", manifest, list(payload or ()))
            if refusal is None:
                wrong = self._call_workers("load_publication", self._canaries.changed(manifest))
                if wrong is not None:
                    raise WeightMismatchError(
                        f"version {manifest.version}: after loading, {wrong}; rollouts since then are discarded. "
                        "Restart this generator; if it recurs, report it with the model's config.json"
                    )
                self._adopt(manifest)
        except TransferInterruptedError:
            raise
        except RunError as error:
            self.failure = error
            raise
        except Exception as error:
            self.failure = RunError(f"loading version {manifest.version} failed halfway: {error}; restart this engine")
            raise self.failure from error
        if refusal is not None:
            raise WeightMismatchError(refusal)

    def _call_workers(self, method: str, *arguments: Any) -> str | None:
        """Call a method of every worker's `WeightReceiver`; return the first refusal, or None."""
        from actors.generation.weight_receiver import Interruption

        replies = [reply for reply in self._llm.collective_rpc(method, args=arguments) if reply is not None]
        # A worker that refuses says why; the others of this engine may only have been interrupted by it.
        replies.sort(key=lambda reply: isinstance(reply, Interruption))
        if replies and isinstance(replies[0], Interruption):
            raise TransferInterruptedError(replies[0])
        return replies[0] if replies else None

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
        scored, finished = self._score(newest_canary(manifest))
        wrong = None if self._adapter is None else self._call_workers("adapter_applied")
        if wrong is not None:
            raise WeightMismatchError(
                f"version {manifest.version}: {wrong}; rollouts since then are discarded. Restart this generator"
            )
        self._canaries.check(manifest, scored)
        self._finished += finished
        self.version = manifest.version

    def _score(self, canary: Canary) -> tuple[list[float], list[tuple[str, Completion]]]:
        """Return the log-probs of the canary's answer, and the requests that finished meanwhile."""
        from vllm import SamplingParams

        params = SamplingParams(
            max_tokens=1, prompt_logprobs=0, temperature=self._spec.sampling.temperature, detokenize=False
        )
        prompt = {"prompt_token_ids": list(canary.token_ids)}
        self._llm.add_request(_CANARY, prompt, params, lora_request=self._adapter, priority=_CANARY_PRIORITY)
        finished: list[tuple[str, Completion]] = []
        while True:
            outputs = self._llm.step()
            finished += self._completions(outputs)
            for output in outputs:
                if output.request_id == _CANARY and output.finished:
                    answer = slice(-len(canary.logprobs), None)
                    scores = zip(canary.token_ids[answer], output.prompt_logprobs[answer], strict=True)
                    return [position[token].logprob for token, position in scores], finished

    def _completions(self, outputs: Iterable[Any]) -> list[tuple[str, Completion]]:
        finished = []
        for output in outputs:
            if output.finished and output.request_id in self._running:
                opponent = self._running.pop(output.request_id)
                finished.append((output.request_id, self._requests.completion(output, opponent)))
        return finished

    def _check_sound(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _build(self, model_dir: str, reference_dir: str) -> Any:
        with _gc_paused():
            from vllm import EngineArgs, LLMEngine
            from vllm.platforms import current_platform

        spec, config, opponent = self._spec, self._spec.generators, self._spec.opponent
        drawn = spec.sampling.completions_per_prompt
        drawn += opponent.completions_per_prompt if opponent is not None and opponent.sampled else 0
        requests = min(MAX_REQUESTS, config.max_running_prompts * drawn + 1)
        options = {} if self._engine_beta is None else self._mixture_options(model_dir, reference_dir)
        if spec.adapter is not None:
            if problem := adapter_problem(config.dtype, gpu=not current_platform.is_cpu()):
                raise UsageError(problem)
            options |= engine_arguments(spec.adapter, self._expected_adapter())
        if current_platform.is_cpu():
            options |= {"enforce_eager": True, "kv_cache_memory_bytes": config.kv_cache_mib << 20}
        else:
            options |= {"enforce_eager": config.enforce_eager, "gpu_memory_utilization": config.gpu_memory_share}
        options |= self._load_options(model_dir, reference_dir)
        if spec.head_dtype != "model":
            options["hf_overrides"] = options.get("hf_overrides", {}) | {"head_dtype": spec.head_dtype}
        if config.tensor_parallel_size > 1:
            options["distributed_executor_backend"] = "mp"
        fewest = max(MAX_BATCHED_TOKENS, config.max_model_len, requests)
        options = {"max_num_batched_tokens": fewest} | options | config.engine
        try:
            arguments = EngineArgs(
                model=model_dir,
                tokenizer=spec.tokenizer,
                trust_remote_code=False,
                dtype=config.dtype,
                max_model_len=config.max_model_len,
                max_num_seqs=requests,
                tensor_parallel_size=config.tensor_parallel_size,
                seed=spec.engine_seed,
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
        except Exception as error:  # AssertionError: others on the GPU gave memory back meanwhile
            if not (config.engine or isinstance(error, ValueError | AssertionError)):
                raise
            if spec.adapter is not None and "LoRA" in str(error):
                raise UsageError(not_applied(model_dir, str(error))) from error
            raise UsageError(_refusal(model_dir, config, error, cpu=current_platform.is_cpu())) from error

    def _load_options(self, model_dir: str, reference_dir: str) -> dict[str, Any]:
        """Return the arguments with which the engine loads the tensors that the learner loads too, and no others."""
        from actors.generation.known_tensors import LOAD_FORMAT, UNUSED
        from actors.generation.weights import REFERENCE_PREFIX, outline_once

        unused = outline_once(model_dir).unused
        if self._engine_beta is not None:
            unused = [*unused, *(REFERENCE_PREFIX + name for name in outline_once(reference_dir).unused)]
        if not unused:
            return {"load_format": "safetensors"}
        return {"load_format": LOAD_FORMAT, "model_loader_extra_config": {UNUSED: unused}}

    def _mixture_options(self, model_dir: str, reference_dir: str) -> dict[str, Any]:
        from actors.generation import mixture

        # The mixture's logits processor supports only vLLM's first model runner, the only one on CPU.
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
        mixture.register()
        return mixture.engine_arguments(
            model_dir, reference_dir, skip_reference=True, published_reference=self._spec.publishes_average
        )


def _refusal(model_dir: str, config: GeneratorConfig, error: Exception, *, cpu: bool) -> str:
    """Say why vLLM did not start, with the setting that decides its memory on this platform."""
    memory = f"kv_cache_mib {config.kv_cache_mib}" if cpu else f"gpu_memory_utilization {config.gpu_memory_share:g}"
    passed = f", generators.engine {', '.join(config.engine)}" if config.engine else ""
    shared = "" if cpu else "; if other processes hold the GPU's memory (`nvidia-smi`), end them or lower the last"
    return (
        f"vLLM refuses {model_dir} with generators.max_model_len {config.max_model_len}, dtype {config.dtype}, "
        f"{memory}{passed}: {error}; change the setting that it names{shared}"
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
