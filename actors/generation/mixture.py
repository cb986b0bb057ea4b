"""Sample from the geometric mixture of two models, token by token, inside one vLLM engine: a vLLM plugin.

    p(v | prefix) proportional to (policy(v | prefix)^(1 - beta) reference(v | prefix)^beta)^(1 / T)

This is the mixture of Nash-MD at every prefix (Munos et al. 2023, "Nash Learning from Human Feedback", section 7). T is
the sampling temperature, applied after mixing. Each request has its own beta, so one batch can hold requests of the
policy (no beta, or 0), of the reference (1) and of mixtures. The engine reports the behaviour log-prob, under p; the
learner recomputes the log-probs under policy and reference.

`GeometricMixtureForCausalLM` holds two models of one architecture, each with its own key-value cache, and returns the
policy's logits; `MixtureLogitsProcessor` mixes in the reference's for rows with a beta. Works without Offbeat, see
docs/mixture.md. Must not depend on publications, versions or leases.
"""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from vllm import ModelRegistry, SamplingParams
from vllm.compilation.backends import set_model_tag
from vllm.config import VllmConfig
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.models.interfaces import SupportsLoRA, has_inner_state, supports_lora, supports_multimodal
from vllm.model_executor.models.utils import AutoWeightsLoader, init_vllm_registered_model, maybe_prefix
from vllm.model_executor.utils import get_packed_modules_mapping
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from actors.errors import UsageError
from actors.generation.weights import REFERENCE_PREFIX
from actors.hub import check_same_architecture, read_config

ARCHITECTURE = "GeometricMixtureForCausalLM"

BETA = "mixture_beta"
"""Key of `SamplingParams.extra_args`: weight of the reference, in [0, 1]."""

_SETTINGS = "geometric_mixture"
"""Attribute that `engine_arguments` adds to the engine's Hugging Face config."""

POLICY_PREFIX = "policy."
"""Prefix of the names of the policy's layers in the engine."""


def register() -> None:
    """Register the architecture with vLLM. The plugin's entry point; safe to call again."""
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        # The class, not its name: vLLM inspects a named class in a separate process, which takes seconds.
        ModelRegistry.register_model(ARCHITECTURE, GeometricMixtureForCausalLM)


def engine_arguments(
    policy_dir: str | Path,
    reference_dir: str | Path,
    *,
    skip_reference: bool = False,
    published_reference: bool = False,
) -> dict[str, Any]:
    """Return the extra arguments for vLLM's `EngineArgs` or `LLM` of the policy, so that the engine holds the mixture.

    `skip_reference` leaves the reference out of batches in which no request mixes. Then every request with a beta needs
    a `cache_salt` that no request without a beta has, because blocks cached without the reference lack its keys and
    values. `published_reference`: True if publications include the reference's weights, for Offbeat's weight receiver.

    Raises UsageError if the two models differ in more than their weights.
    """
    policy = read_config(policy_dir).to_dict()
    check_same_architecture(policy_dir, reference_dir)
    settings = {
        "architectures": policy["architectures"],
        "reference": str(reference_dir),
        "skip_reference": skip_reference,
        "published_reference": published_reference,
    }
    return {
        "hf_overrides": {"architectures": [ARCHITECTURE], _SETTINGS: settings},
        "logits_processors": [MixtureLogitsProcessor],
    }


def settings_of(hf_config: Any) -> dict[str, Any]:
    """Return the settings that `engine_arguments` passed to an engine; empty for an engine without a mixture."""
    return getattr(hf_config, _SETTINGS, {})


def check_engine(vllm_config: VllmConfig) -> None:
    """Refuse an engine that would run but not sample from the mixture. Raises UsageError."""
    model_config, parallel_config = vllm_config.model_config, vllm_config.parallel_config
    if vllm_config.speculative_config is not None:
        raise UsageError("a mixture cannot be sampled with speculative decoding; leave speculative_config unset")
    if parallel_config.pipeline_parallel_size > 1:
        raise UsageError(
            f"a mixture cannot be split by layers (pipeline_parallel_size {parallel_config.pipeline_parallel_size}); "
            "use tensor_parallel_size"
        )
    if MixtureLogitsProcessor not in (model_config.logits_processors or []):
        raise UsageError(
            "a mixture needs its logits processor, or every request would sample the policy; build the engine with "
            "actors.generation.mixture.engine_arguments"
        )
    if model_config.enable_prompt_embeds:
        raise UsageError(
            "a mixture needs token ids, because its models embed them differently; unset enable_prompt_embeds"
        )


class _Mixing:
    """State that the model and the logits processor of one engine share, in each worker."""

    def __init__(self) -> None:
        self.betas: dict[int, float] = {}
        """Beta by row of the batch, only for rows with a beta. The processor updates it before each forward pass."""
        self.hidden: Tensor | None = None
        """[rows, hidden]: the reference's last hidden states at the sampled positions. Set by the model."""
        self.reference: nn.Module | None = None


_MIXINGS: WeakValueDictionary[str, _Mixing] = WeakValueDictionary()


def _mixing_of(vllm_config: VllmConfig) -> _Mixing:
    return _MIXINGS.setdefault(vllm_config.instance_id, _Mixing())


class GeometricMixtureForCausalLM(nn.Module, SupportsLoRA):
    """Policy and reference side by side. vLLM builds it from the result of `engine_arguments`.

    Hidden states are [tokens, 2 * hidden], policy first, or [tokens, hidden] if the reference was left out. An engine
    with LoRA adapts the policy alone. Raises UsageError if the engine or the architecture does not support mixing.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        check_engine(vllm_config)
        settings = settings_of(vllm_config.model_config.hf_config)
        self.policy = _inner(vllm_config, maybe_prefix(prefix, "policy"))
        # This tag is the key of graphs compiled in this process, the hash in `_inner` of those of earlier processes.
        with set_model_tag("reference"):
            self.reference = _inner(vllm_config, maybe_prefix(prefix, "reference"))
        self.config = self.policy.config
        self.packed_modules_mapping = get_packed_modules_mapping(self)
        self.secondary_weights = [DefaultModelLoader.Source(settings["reference"], None, prefix=REFERENCE_PREFIX)]
        self._mixing = _mixing_of(vllm_config)
        self._mixing.reference = self.reference
        # A captured CUDA graph replays the same kernels for every batch, so both models must always run.
        self._may_skip = settings["skip_reference"] and vllm_config.model_config.enforce_eager
        self._width = 0

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        return self.policy.embed_input_ids(input_ids)

    def forward(
        self, input_ids: Tensor, positions: Tensor, intermediate_tensors: Any = None, inputs_embeds: Any = None
    ) -> Tensor:
        policy = self.policy(input_ids, positions, None, None)
        self._width = policy.shape[-1]
        if self._may_skip and not self._mixing.betas:
            return policy
        return torch.cat([policy, self.reference(input_ids, positions, None, None)], -1)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Compute the policy's logits. The processor computes the reference's, only for the rows that need them.

        Prompt log-probs, which are computed here too, never need the reference.
        """
        self._mixing.hidden = hidden_states[:, self._width :]
        return self.policy.compute_logits(hidden_states[:, : self._width].contiguous())

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the policy's tensors by the names of its checkpoint, the reference's with the prefix `reference.`."""
        named = ((n if n.startswith(REFERENCE_PREFIX) else POLICY_PREFIX + n, tensor) for n, tensor in weights)
        return AutoWeightsLoader(self).load_weights(named)


def _inner(vllm_config: VllmConfig, prefix: str) -> nn.Module:
    config = copy.deepcopy(vllm_config.model_config.hf_config)
    if vllm_config.model_config.word_embeddings_untied_by_checkpoint:
        # The policy's files repeat its tied output projection, so vLLM unties it until it has compared the two. But
        # publications do not repeat it, nor must the reference's files: follow config.json.
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = True
    architectures = settings_of(config)["architectures"]
    # vLLM keeps compiled models in files named by a hash of the configuration. With one hash for both, the reference
    # would load and overwrite the policy's file, whose graphs name the policy's attention layers.
    settings_of(config)["part"] = prefix
    model = init_vllm_registered_model(vllm_config, prefix=prefix, hf_config=config, architectures=architectures)
    if vllm_config.lora_config is not None and not supports_lora(model):
        raise ValueError(f"{architectures[0]} does not support LoRA yet.")
    if has_inner_state(model) or supports_multimodal(model):
        raise UsageError(
            f"{architectures[0]} cannot be mixed: it keeps state besides its key-value cache, or is multimodal; use a "
            "text-only decoder with ordinary attention"
        )
    return model


class MixtureLogitsProcessor(LogitsProcessor):
    """Replaces the logits of rows with a beta by those of the mixture, (1 - beta) policy + beta reference.

    They equal the mixture's log-probs up to a constant per row, which the softmax removes. Forbidden tokens (-inf) stay
    forbidden.
    """

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Check a request's beta. Raises ValueError, which vLLM turns into a refusal of the request."""
        _beta(sampling_params)

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        # vLLM builds processors before the model, so this registers the architecture in time in worker processes that
        # lack the installed entry point.
        register()
        self._mixing = _mixing_of(vllm_config)
        self._device = device
        self._rows = torch.empty(0, dtype=torch.int64, device=device)
        self._betas = torch.empty(0, 1, device=device)

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        betas = self._mixing.betas
        # A beta of 0 counts as none: the row needs no reference.
        if process_dict_updates(betas, batch_update, lambda params, *_: _beta(params) or None):
            self._rows = torch.tensor(list(betas), dtype=torch.int64, device=self._device)
            self._betas = torch.tensor(list(betas.values()), dtype=torch.float32, device=self._device)[:, None]

    def apply(self, logits: Tensor) -> Tensor:
        """Mix into `logits`, [rows, vocabulary] in float32, in place."""
        if not self._mixing.betas:
            return logits
        hidden, reference = self._mixing.hidden, self._mixing.reference
        assert hidden is not None
        assert reference is not None
        policy = logits[self._rows]
        mixed = torch.lerp(policy, reference.compute_logits(hidden[self._rows]).float(), self._betas)
        logits[self._rows] = mixed.masked_fill_(policy == -torch.inf, -torch.inf)
        return logits


def _beta(params: SamplingParams) -> float | None:
    value = (params.extra_args or {}).get(BETA)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
        raise ValueError(
            f"extra_args[{BETA!r}] is {value!r}; it must be a number from 0 (the policy) to 1 (the reference)"
        )
    return float(value)
