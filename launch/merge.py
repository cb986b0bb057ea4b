"""`offbeat merge`: write a LoRA adapter and its base as one model."""

from pathlib import Path

from safetensors.torch import load_file

from actors.adapters import peft_form
from actors.adapters.config import LoraConfig
from actors.errors import UsageError, writing
from actors.files import atomic_directory
from actors.foreign.documents import read_object
from actors.foreign.text import WHOLE, shown
from actors.hub import ADAPTER_CONFIG, quiet, read_config, resolve, unique_tensors
from learner.backend import manifest
from learner.backend.models import load_model, settle_generation, write_model


def run_merge(adapter: Path, into: Path, base: str | None = None) -> int:
    """Write the model that an adapter makes of its base, whole or not at all.

    `base` replaces the directory or hub name that the adapter names. Raises UsageError if one is not there or they do
    not fit together.
    """
    described, weights = adapter / ADAPTER_CONFIG, adapter / peft_form.ADAPTER_FILE
    if not described.is_file() or not weights.is_file():
        if not adapter.is_dir():
            raise UsageError(f"there is no directory {adapter} (looked in {Path.cwd()}); give that of a LoRA adapter")
        lacking = ADAPTER_CONFIG if not described.is_file() else peft_form.ADAPTER_FILE
        raise UsageError(
            f"{adapter} holds no LoRA adapter: it lacks {lacking}; give the directory that peft or a run with "
            "learner.lora wrote, as runs/NAME/final"
        )
    if into.exists():
        raise UsageError(f"{into} exists; give a directory that does not")
    manifest.check(adapter)
    fields = read_object(described)
    source = resolve(base or str(fields.get("base_model_name_or_path") or ""))
    with quiet():
        model = load_model(source, _dtype(source))
    peft_form.adapt(model, _settings(fields, adapter), str(source))
    peft_form.load(model, load_file(weights))
    settle_generation(model, adapter if (adapter / "generation_config.json").is_file() else source, ())
    state = peft_form.merged(model, {name: each.detach() for name, each in unique_tensors(model).items()})
    with writing(into, "then try again"), atomic_directory(into) as stage, quiet():
        write_model(stage, model, state, _tokenizer_of(adapter, source))
        manifest.seal(stage)
    print(shown(f"{adapter} merged into {source}: {into}", WHOLE))
    return 0


def _settings(fields: dict[str, object], adapter: Path) -> LoraConfig:
    """Read what peft wrote. Raises UsageError for forms of LoRA that are not merged by W + (alpha / r) B A."""
    other = [
        name
        for name in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias")
        if fields.get(name)
    ]
    if other or not isinstance(fields.get("target_modules"), list):
        what = ", ".join(other) or "no list of target_modules"
        raise UsageError(f"{adapter} has {what}, which offbeat merge does not know; merge it with peft")
    return LoraConfig.model_validate(
        {"rank": fields["r"], "alpha": fields["lora_alpha"], "targets": fields["target_modules"]}
    )


def _dtype(directory: Path) -> str:
    return "float32" if "float32" in str(getattr(read_config(directory), "dtype", "")) else "bfloat16"


def _tokenizer_of(adapter: Path, base: Path) -> Path:
    return adapter if any(path.name.startswith("tokenizer") for path in adapter.iterdir()) else base
