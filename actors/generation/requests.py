"""Make vLLM's arguments of one request, and the completion from its output. Imports vLLM when it makes parameters.

Must not know weights, versions in use or which requests are running.
"""

from collections.abc import Sequence
from typing import Any

from actors.errors import RunError, UsageError, logged
from actors.generation.config import GeneratorSpec
from actors.hub import answer_ends
from actors.records import Completion

_MIXED = "mixed"
"""Cache salt of opponents' prompts: the policy's cached blocks lack keys and values of the second model."""


class Requests:
    """Makes the requests of one engine and reads its outputs. `vocabulary`: rows of the engine's embedding."""

    def __init__(self, spec: GeneratorSpec, tokenizer: Any, vocabulary: int) -> None:
        self.tokenizer = tokenizer
        self.ends = tuple(answer_ends(spec.model_dir, tokenizer))
        """Token ids that end an answer."""
        self._spec, self._vocabulary = spec, vocabulary
        self._engine_beta = spec.engine_beta
        self.params = self.sampling_params()
        self.opponent_params = self.sampling_params(self._engine_beta)

    def checked(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        opponent: bool = False,
        seed: int | None = None,
        max_tokens: int | None = None,
        version: int = 0,
    ) -> tuple[dict[str, Any], Any]:
        """Check one request of `Engine.add`; return its prompt and sampling parameters for vLLM.

        `version`: policy version in use. Raises UsageError if the prompt does not fit the engine.
        """
        self._check_prompt(request_id, prompt_token_ids, max_tokens or self._spec.sampling.max_new_tokens)
        prompt: dict[str, Any] = {"prompt_token_ids": list(prompt_token_ids)}
        salts = [_MIXED] if opponent and self._engine_beta is not None else []
        if self._spec.generators.on_update == "keep":
            salts.append(str(version))  # blocks cached under older weights stay, for requests of that version alone
        if salts:
            prompt["cache_salt"] = ":".join(salts)
        params = self.opponent_params if opponent else self.params
        if seed is not None or max_tokens is not None:
            params = params.clone()
            params.seed, params.max_tokens = seed, max_tokens or params.max_tokens
        return prompt, params

    def scoring(self, token_ids: Sequence[int]) -> tuple[dict[str, Any], Any]:
        """Return prompt and parameters of a request for the log-probs of its prompt, without text."""
        from vllm import SamplingParams

        temperature = self._spec.sampling.temperature
        params = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=temperature, detokenize=False)
        return {"prompt_token_ids": list(token_ids)}, params

    def completion(self, request: Any, opponent: bool) -> Completion:
        """Return the completion of a finished request. Raises RunError if the engine ended it for another reason."""
        output = request.outputs[0]
        if output.finish_reason not in ("stop", "length"):
            raise RunError(logged(f"the engine ended a request with {output.finish_reason!r}"))
        token_ids = tuple(output.token_ids)
        written = token_ids[:-1] if output.finish_reason == "stop" else token_ids
        return Completion(
            token_ids=token_ids,
            logprobs=tuple(output.logprobs.logprobs),
            versions=tuple(int(span.version) for span in output.weight_versions for _ in range(span.start, span.end)),
            text=text_after(request.prompt_token_ids, written, self.tokenizer),
            finished=token_ids[-1] in self.ends,
            opponent=opponent,
        )

    def sampling_params(self, beta: float | None = None) -> Any:
        """Return vLLM's parameters of a completion. `beta`: weight of the second model, if the request mixes."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        from actors.generation.mixture import BETA

        stops = {*self.ends, *self._spec.sampling.stop_token_ids}
        return SamplingParams(
            temperature=self._spec.sampling.temperature,
            max_tokens=self._spec.sampling.max_new_tokens,
            # Only these tokens end a completion: vLLM may read others from the model's files.
            ignore_eos=True,
            stop_token_ids=sorted(token for token in stops if token < self._vocabulary),
            logprobs=0,  # only of the sampled token
            flat_logprobs=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
            # vLLM would also write each log-prob's token as text, and fails for rows of the model beyond the tokenizer.
            detokenize=False,
            extra_args=None if beta is None else {BETA: beta},
        )

    def _check_prompt(self, request_id: str, prompt_token_ids: Sequence[int], new_tokens: int) -> None:
        needed = len(prompt_token_ids) + new_tokens
        if not prompt_token_ids:
            raise UsageError(f"request {request_id!r} has an empty prompt; give it at least one token")
        if needed > self._spec.generators.max_model_len:
            raise UsageError(
                f"request {request_id!r} has a prompt of {len(prompt_token_ids)} tokens, which with "
                f"sampling.max_new_tokens {self._spec.sampling.max_new_tokens} makes {needed}, more than "
                f"generators.max_model_len {self._spec.generators.max_model_len}; raise the last or shorten the prompt"
            )
        if not 0 <= min(prompt_token_ids) <= max(prompt_token_ids) < self._vocabulary:
            raise UsageError(
                f"request {request_id!r} has token ids outside the vocabulary of {self._vocabulary}; use the tokenizer "
                "that belongs to the model"
            )


def text_after(prompt_ids: Sequence[int], ids: Sequence[int], tokenizer: Any) -> str:
    """Return the text that `ids` add to the prompt's, without special tokens; ids beyond the tokenizer add nothing.

    A sequence is decoded as a stream: decoded apart, a first word would lose its space, and a character that several
    tokens spell would be cut.
    """
    known = len(tokenizer)
    ids = [token for token in ids if token < known]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        before = tokenizer.decode(prompt_ids, skip_special_tokens=True)
        whole = tokenizer.decode([*prompt_ids, *ids], skip_special_tokens=True)
        apart = not whole.startswith(before)
        return tokenizer.decode(ids, skip_special_tokens=True) if apart else whole[len(before) :]
    from tokenizers.decoders import DecodeStream

    stream, pieces = DecodeStream(ids=list(prompt_ids), skip_special_tokens=True), []
    for token in ids:
        try:
            pieces.append(stream.step(backend, token))
        except Exception as error:  # the tokenizers library raises the bare class for bytes that are no UTF-8
            if not str(error).startswith("Invalid prefix encountered"):
                raise
            stream = DecodeStream(skip_special_tokens=True)
            pieces.append(stream.step(backend, token))
    return "".join(piece for piece in pieces if piece)
