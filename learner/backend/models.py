"""Hugging Face model directories: load a causal language model, and write one that other tools load unchanged."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from actors.adapters import peft_form
from actors.errors import UsageError
from actors.foreign.documents import RESTORE, read_object
from actors.foreign.text import first_line
from actors.hub import ADAPTER_CONFIG, load_complete, read_config, require_unquantised
from learner.backend.checkpoint_layout import Form
from learner.backend.manifest import MANIFEST
from learner.tensors.logprobs import PolicyWithLogProbs
from learner.tensors.shared_prompts import supports

_WEIGHT_SUFFIXES = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".gguf", ".h5")

_UNTRUNCATED = {
    "num_beams": 1, "top_k": 0, "top_p": 1.0, "min_p": None, "typical_p": None, "top_h": None,
    "epsilon_cutoff": None, "eta_cutoff": None,
}  # fmt: skip
"""Settings of transformers' `generate` under which it samples from the whole distribution."""

CONFIG = "config.json"
DPO_FILE = "dpo.json"
"""Record of `offbeat dpo` in a model directory: reference, loss and beta. Does not apply to models trained from it."""


def load_model(directory: Path, dtype: str) -> PreTrainedModel:
    """Load the causal language model of `directory` on the CPU, in evaluation mode (no dropout).

    `dtype` is `float32` or `bfloat16`. Raises UsageError if it cannot be loaded, lacks weights, or has one that is not
    finite.
    """
    try:
        require_unquantised(directory)
        model, _ = load_complete(AutoModelForCausalLM, directory, dtype)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"model {directory} cannot be loaded: {first_line(error)}; give a causal language model's directory"
        ) from error
    broken = next((name for name, weight in model.named_parameters() if not weight.detach().sum().isfinite()), None)
    if broken is not None:
        raise UsageError(f"the weight {broken} of model {directory} holds NaN or infinity; {RESTORE}")
    return model


def log_prob_tolerance(dtype: str) -> float:
    """Return the rounding (nats) to expect between two ways to compute one log-prob."""
    return 1e-3 if dtype == "float32" else 0.25


def load_policy(
    directory: Path, dtype: str, chunk: int = 512, temperature: float = 1.0, head_dtype: str = "model"
) -> PolicyWithLogProbs:
    """Load a model as a function from tokens to log-probs, and check it against the model's own logits.

    Raises UsageError if it cannot be loaded or has no supported architecture.
    """
    policy = PolicyWithLogProbs(load_model(directory, dtype), chunk, temperature, head_dtype)
    policy.check(log_prob_tolerance(dtype))
    policy.shares_prompts = supports(policy, log_prob_tolerance(dtype))
    return policy


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Turn on gradient checkpointing but keep dropout off.

    transformers recomputes only layers in training mode. So only the layers are switched to it, not the modules inside
    them, and the layers' own dropout rates are set to 0.
    """
    # Re-entrant: under ZeRO-3 the non-re-entrant variant sees weights of other shapes when it recomputes.
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    if peft_form.is_adapted(model):
        # It recomputes only layers whose input has a gradient, and the frozen embedding's output has none.
        model.enable_input_require_grads()
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True
            for name, value in list(vars(module).items()):
                if "dropout" in name and isinstance(value, float):
                    setattr(module, name, 0.0)


def generation_settings(
    model_dir: Path, ends: Sequence[int], temperature: float | None = None
) -> tuple[GenerationConfig, str | None]:
    """Return the generation settings that a model trained from `model_dir` is saved with, and what was repaired.

    They name `ends`, the token ids that end an answer; none keeps the directory's. With the `temperature` of a run they
    sample as the run did: at it, untruncated. Otherwise they are the directory's own, and if those set what only
    sampling reads without `do_sample`, which transformers refuses to save, it is set. Raises UsageError with
    transformers' reason if they are not valid.
    """
    path = model_dir / "generation_config.json"
    try:
        if path.is_file():
            settings = GenerationConfig.from_dict(read_object(path))
        else:
            settings = GenerationConfig.from_model_config(read_config(model_dir))
        if ends:
            settings.eos_token_id = ends[0] if len(ends) == 1 else list(ends)
        if settings.pad_token_id is not None and settings.pad_token_id < 0:
            settings.pad_token_id = None
        if temperature is not None:
            settings.update(**_UNTRUNCATED, do_sample=True, temperature=temperature)
        with contextlib.suppress(ValueError):
            settings.validate(strict=True)
            return settings, None
        settings.do_sample = True
        settings.validate(strict=True)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path} is not valid, so no model trained from it could be saved: {error}; correct or remove it"
        ) from error
    return settings, f"{path} sets how to sample, but not do_sample; saved models have it set"


def settle_generation(model: Any, model_dir: Path, ends: Sequence[int], temperature: float | None = None) -> None:
    """Give a model that writes text the settings of `generation_settings`, with which it will be saved.

    Another model's configuration names `ends`, so that it is read where answers ended in its training.
    """
    if model.can_generate():
        model.generation_config, _ = generation_settings(model_dir, ends, temperature)
    elif ends:
        model.config.get_text_config().eos_token_id = ends[0] if len(ends) == 1 else list(ends)


Writer = Callable[[Path, PreTrainedModel, dict[str, Tensor], Path], None]
"""`write_model` or `write_adapter`."""


def writer_of(model: PreTrainedModel, form: Form) -> Writer:
    """Return what writes a model in one of the two forms; without adapters it has only the second."""
    return write_adapter if form == "adapter" and peft_form.is_adapted(model) else write_model


def rehearse(model: PreTrainedModel, source: Path, write: Writer | None = None) -> None:
    """Write all of a saved model but its weights to a temporary directory: what fails at the end fails now.

    Raises UsageError with the whole reason.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            (write or write_model)(Path(folder), model, {}, source)
    except Exception as error:
        raise UsageError(
            f"a model trained from {model.config.name_or_path} could not be saved: {type(error).__name__}: {error}; "
            "correct its config.json or generation_config.json"
        ) from error


def write_model(directory: Path, model: PreTrainedModel, state: dict[str, Tensor], source: Path) -> None:
    """Write `state` (in-memory names, CPU) and the configuration, copy the tokenizer of `source`. Raises OSError."""
    model.save_pretrained(directory, state_dict=state)
    _copy_tokenizer(source, directory)


def write_adapter(directory: Path, model: PreTrainedModel, state: dict[str, Tensor], source: Path) -> None:
    """Write the adapters `state` (CPU) of `model` in peft's form, copy the tokenizer of `source`. Raises OSError."""
    save_file(state, directory / peft_form.ADAPTER_FILE, metadata={"format": "pt"})
    (directory / ADAPTER_CONFIG).write_text(peft_form.described(model), encoding="utf-8")
    model.generation_config.save_pretrained(directory)
    _copy_tokenizer(source, directory, besides=(CONFIG,))


def _copy_tokenizer(source: Path, directory: Path, besides: Sequence[str] = ()) -> None:
    for path in source.iterdir():
        # A file that is neither weights nor just written belongs to the tokenizer, of whatever kind.
        other = path.name.endswith(_WEIGHT_SUFFIXES) or path.name in (DPO_FILE, MANIFEST, ADAPTER_CONFIG, *besides)
        if path.is_file() and not other and not (directory / path.name).exists():
            shutil.copyfile(path, directory / path.name)
