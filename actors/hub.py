"""Where a model's files are, by path or by hub name, and whether two models are of one architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from actors.errors import UsageError

_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

# Fields of config.json that do not change what a model computes.
_IMMATERIAL = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "initializer_range"}
_IMMATERIAL_SUFFIXES = ("_token_id", "dropout", "_pdrop")


def resolve(path: str | Path) -> Path:
    """The local directory of a model or tokenizer: `path` itself, or the downloaded copy when it is a hub name.

    Raises UsageError when it is neither.
    """
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(path), allow_patterns=_HUB_FILES))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UsageError(
            f"model {str(path)!r} is neither a directory nor a hub name that can be downloaded ({error}); "
            "give the directory of a Hugging Face model"
        ) from error


def require_safetensors(path: str | Path) -> None:
    """Refuses a local model directory whose weights are pickles only, which can run code when they are read.

    Raises UsageError naming one of them.
    """
    directory = Path(path)
    names = sorted(entry.name for entry in directory.iterdir()) if directory.is_dir() else []
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles and not any(name.endswith(".safetensors") for name in names):
        raise UsageError(
            f"{directory} holds its weights as a pickle ({pickles[0]}), which can run code when it is read, and no "
            "*.safetensors; give a directory with safetensors weights, or where you trust the pickle load it with "
            "transformers and write it back with save_pretrained"
        )


def read_config(path: str | Path) -> Any:
    """transformers' configuration of a model's directory or hub name; code that comes with a model is never run.

    Raises what transformers raises: OSError, ValueError.
    """
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(path, trust_remote_code=False)


def check_same_architecture(policy_dir: str | Path, reference_dir: str | Path) -> None:
    """For a mixture both models are built from the policy's `config.json`, so the reference's must say the same of
    everything that a model computes with.

    Raises:
        UsageError: naming the first field that differs.
    """
    policy, reference = read_config(policy_dir).to_dict(), read_config(reference_dir).to_dict()
    telling = ["architectures", "vocab_size"]
    for field in [*telling, *sorted((policy.keys() | reference.keys()) - set(telling))]:
        if field in _IMMATERIAL or field.endswith(_IMMATERIAL_SUFFIXES):
            continue
        if policy.get(field) != reference.get(field):
            raise UsageError(
                f"the reference {reference_dir} cannot be mixed with the policy {policy_dir}: its {field} is "
                f"{reference.get(field)!r}, the policy's {policy.get(field)!r}; use a reference of the policy's own "
                "architecture, sizes and vocabulary"
            )
