"""`offbeat merge`: write a LoRA adapter and its base as one model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from actors.adapters import peft_form
from actors.adapters.config import LoraConfig
from actors.errors import UsageError, writing
from actors.files import atomic_directory, unwritable
from actors.foreign.documents import read_object
from actors.foreign.tensor_files import read_header
from actors.foreign.text import WHOLE, shown
from actors.hub import ADAPTER_CONFIG, quiet, read_config, resolve, unique_tensors
from learner.backend import manifest

_ANY = {
    *("r", "lora_alpha", "base_model_name_or_path"),  # merging follows them
    *("target_modules", "task_type", "revision", "inference_mode", "lora_dropout", "auto_mapping", "peft_version"),
}
"""Fields of peft's configuration that may have any value."""
_LONGEST = 80
"""Characters of a field that are shown."""
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "orthogonal"),  # others change the base
    "megatron_core": ("megatron.core",),
    "qalora_group_size": (16,),
}
"""Values of other fields that ask for no more than W + (alpha / r) B A, as None, False and empty ones do."""


def run_merge(adapter: Path, into: Path, base: str | None = None) -> int:
    """Write the model that an adapter makes of its base, whole or not at all.

    `base` replaces the directory or hub name that the adapter names. Raises UsageError if one is not there or they do
    not fit together.
    """
    _require_adapter(adapter)
    if into.exists():
        raise UsageError(f"{into} exists; give a directory that does not")
    if (problem := unwritable(into)) is not None:
        raise UsageError(f"{into} cannot be written: {problem}; give another directory")
    weights = adapter / peft_form.ADAPTER_FILE
    fields = read_object(adapter / ADAPTER_CONFIG)
    lora = _settings(fields, read_header(weights), adapter)
    manifest.check(adapter)
    source = resolve(base or _base_of(fields, adapter))

    # From here on with torch, whose import alone takes seconds.
    from safetensors.torch import load_file

    from learner.backend.models import load_model, settle_generation, write_model

    with quiet():
        model = load_model(source, _dtype(source))
    peft_form.adapt(model, lora, str(source))
    given = load_file(weights)
    if _names_layers(fields):
        given = _neutral(peft_form.tensors(model), given) | given
    peft_form.load(model, given)
    settle_generation(model, adapter if (adapter / "generation_config.json").is_file() else source, ())
    state = peft_form.merged(model, {name: each.detach() for name, each in unique_tensors(model).items()})
    with writing(into, "then try again"), atomic_directory(into) as stage, quiet():
        write_model(stage, model, state, _tokenizer_of(adapter, source))
        manifest.seal(stage)
    print(shown(f"{adapter} merged into {source}: {into}", WHOLE))
    return 0


def _require_adapter(adapter: Path) -> None:
    lacking = [name for name in (ADAPTER_CONFIG, peft_form.ADAPTER_FILE) if not (adapter / name).is_file()]
    if not adapter.is_dir():
        raise UsageError(f"there is no directory {adapter} (looked in {Path.cwd()}); give that of a LoRA adapter")
    if lacking:
        raise UsageError(
            f"{adapter} holds no LoRA adapter: it lacks {lacking[0]}; give the directory that peft or a run with "
            "learner.lora wrote, as runs/NAME/final"
        )


def _settings(fields: Mapping[str, Any], header: Mapping[str, Any], adapter: Path) -> LoraConfig:
    """Read what peft wrote. Raises UsageError for forms of LoRA that are not merged by W + (alpha / r) B A."""
    if other := [*_other_fields(fields), *_other_tensors(header)]:
        raise UsageError(f"{adapter} has {', '.join(other)}, which offbeat merge does not know; merge it with peft")
    layers = sorted({name.partition(".lora_")[0].rpartition(".")[2] for name in header})
    try:
        return LoraConfig.model_validate(
            {"rank": fields.get("r"), "alpha": fields.get("lora_alpha"), "targets": layers}
        )
    except ValidationError as error:
        wrong = {"rank": "r", "alpha": "lora_alpha"}.get(str(error.errors()[0]["loc"][0]))
        if wrong is None:
            raise UsageError(
                f"{adapter} changes no layer: {peft_form.ADAPTER_FILE} holds no tensors; save the adapter again"
            ) from None
        raise UsageError(
            f"{adapter} is no adapter that offbeat merge can read: it has {wrong}: {fields.get(wrong)!r}; allowed: "
            "whole numbers, r from 1 to 512 and lora_alpha from 1; merge it with peft"
        ) from None


def _names_layers(fields: Mapping[str, Any]) -> bool:
    """Return whether the adapter may leave out some layers of a kind: an expression or a whole path names its own."""
    targets = fields.get("target_modules")
    return isinstance(targets, str) or any("." in str(each) for each in targets or ())


def _neutral(own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return zeros for the tensors of `own` whose layers `given` leaves out: they change nothing."""
    layers = {name.partition(".lora_")[0] for name in given}
    return {name: each.detach() * 0 for name, each in own.items() if name.partition(".lora_")[0] not in layers}


def _other_fields(fields: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} {value!r}"[:_LONGEST]
        for name, value in fields.items()
        if name not in _ANY and not (value is None or value is False or value in ({}, [], *_PLAIN.get(name, ())))
    ]


def _other_tensors(header: Mapping[str, Any]) -> list[str]:
    factors = tuple(f".lora_{letter}.weight" for letter in "AB")
    return [f"a tensor {name}" for name in sorted(header) if not name.endswith(factors)][:1]


def _base_of(fields: Mapping[str, Any], adapter: Path) -> str:
    name = fields.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise UsageError(f"{adapter} names no base model; give it with --base MODEL")
    return name


def _dtype(directory: Path) -> str:
    return "float32" if "float32" in str(getattr(read_config(directory), "dtype", "")) else "bfloat16"


def _tokenizer_of(adapter: Path, base: Path) -> Path:
    return adapter if any(path.name.startswith("tokenizer") for path in adapter.iterdir()) else base
