"""One vLLM engine in this process: requests in, completions with behaviour log-probs and token versions out.

One thread drives it step by step, so that new weights take effect exactly between two steps. Uses vLLM's public API
only; `startup/build.py` builds it, after its environment is set. Must not depend on leases, groups or Ray.
"""

import itertools
import os
from collections.abc import Iterable, Sequence
from typing import Any

from actors.errors import RunError, TransferInterruptedError, UsageError, WeightMismatchError
from actors.generation.config import GeneratorConfig, GeneratorSpec
from actors.generation.lora.arguments import adapter_request, not_applied
from actors.generation.proof.canary import CanaryCheck, newest_canary
from actors.generation.requests import Requests
from actors.generation.startup import start_files
from actors.generation.startup.build import build, expected_adapter
from actors.records import Canary, Completion, Manifest

_CANARY = "canary"
_CANARY_PRIORITY, _SAMPLE_PRIORITY = 0, 1


def engine_environment(generators: GeneratorConfig, *, cuda: bool | None = None) -> dict[str, str]:
    """Return the environment variables that an engine's process needs.

    `cuda`: True if it will run on GPUs; None asks torch about this machine.
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
    """A vLLM engine with weights that can be replaced between two steps while requests are running.

    If the opponent needs a second model, the engine holds it beside the policy. Raises UsageError if the directories or
    settings of `spec` do not fit an engine.
    """

    def __init__(self, spec: GeneratorSpec) -> None:
        if spec.adapter is not None and spec.publishes_average:
            raise UsageError(
                "the opponent's kind is ema, but an average of adapted weights is no adapter; set learner.lora.publish "
                "to merged"
            )
        self._spec = spec
        self.version = 0  # policy version in use
        self.failure: RunError | None = None
        """Error that every further call raises; None while the engine works."""
        self._canaries = CanaryCheck(spec.generators)
        self._running: dict[str, bool] = {}  # by request id: True if it samples an opponent
        self._finished: list[tuple[str, Completion]] = []
        os.environ.update(engine_environment(spec.generators))
        with start_files.noted():
            self._llm = self._build()
            self._remove_start_files()
        self._adapter = None if spec.adapter is None else self._begin_adapters()
        self._llm.set_weight_version("0")
        self._requests = Requests(spec, self._llm.get_tokenizer(), self._llm.model_config.get_vocab_size())

    def _begin_adapters(self) -> Any:
        """Put version 0 in place; return vLLM's `LoRARequest` for every request. Raises UsageError if vLLM refuses."""
        refusal = self._call_workers("begin_adapters", self._spec.adapter, expected_adapter(self._spec))
        if refusal is not None:
            raise UsageError(not_applied(str(self._spec.model_dir), refusal))
        return adapter_request()

    def _build(self) -> Any:
        return build(self._spec)

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
        """Return whether `step` has work to do."""
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
        asked = (request_id, prompt_token_ids, opponent, seed, max_tokens)
        prompt, params = self._requests.checked(*asked, version=self.version)
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
        """Replace the weights between two steps; running requests continue, as `generators.on_update` says.

        A step in flight ends first, so that its tokens carry the version that they were sampled with. `payload`: what
        the transport's receiver needs beside the manifest; see `receivers.py`.

        Raises WeightMismatchError if the publication is refused, TransferInterruptedError if another generator's
        failure ended its transfer. If `failure` is then None, the old weights are intact and in use; otherwise the
        model was already changed and every later call raises.
        """
        from actors.generation.weights import check_not_older  # needs torch

        self._check_sound()
        check_not_older(manifest, self.version)
        self._canaries.check_before(manifest)
        try:
            if self._spec.generators.async_scheduling:
                self._finish_step_in_flight()
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

    def _finish_step_in_flight(self) -> None:
        """Finish the steps that have begun, without beginning another. The next `step` returns their finished
        requests."""
        self._llm.sleep(level=0, mode="keep")  # schedule nothing more; at this level nothing else sleeps
        for _ in range(self._llm.vllm_config.max_concurrent_batches):
            self._finished += self._completions(self._llm.step())
        self._llm.wake_up(tags=["scheduling"])

    def _call_workers(self, method: str, *arguments: Any) -> str | None:
        """Call a method of every worker's `WeightReceiver`; return the first refusal, or None."""
        from actors.generation.weight_receiver import Interruption

        replies = [reply for reply in self._llm.collective_rpc(method, args=arguments) if reply is not None]
        # The worker that refuses gives the reason; it may have interrupted the engine's other workers.
        replies.sort(key=lambda reply: isinstance(reply, Interruption))
        if replies and isinstance(replies[0], Interruption):
            raise TransferInterruptedError(replies[0])
        return replies[0] if replies else None

    def _adopt(self, manifest: Manifest) -> None:
        """Put the loaded weights into use if the canary agrees.

        The canary's steps advance the other requests too; the next `step` returns those that finish.
        """
        # Cached keys and values belong to the old weights. Preempting all requests frees their blocks (otherwise vLLM
        # drops nothing) and lets the canary run in the very next step, because its priority is higher. If running
        # requests keep their blocks, no later request finds them: `Requests` salts prompts with the version.
        kept = self._spec.generators.on_update == "keep" and self._running
        if not kept and not self._llm.reset_prefix_cache(reset_running_requests=True):
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
        prompt, params = self._requests.scoring(canary.token_ids)
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
