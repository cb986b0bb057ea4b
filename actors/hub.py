"""A model's files, by directory or hub name, and what its configuration says."""

from pathlib import Path
from typing import Any

from actors.errors import UsageError

_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

# Fields of config.json that do not change what a model computes.
_IMMATERIAL = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "initializer_range"}
_IMMATERIAL_SUFFIXES = ("_token_id", "dropout", "_pdrop")


def resolve(path: str | Path) -> Path:
    """Return the local directory of a model or tokenizer; download it if `path` is a hub name.

    Raises UsageError if it is neither.
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
    """Raise UsageError if a local directory holds its weights only as pickles, which can run code when read."""
    directory = Path(path)
    names = sorted(entry.name for entry in directory.iterdir()) if directory.is_dir() else []
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles and not any(name.endswith(".safetensors") for name in names):
        raise UsageError(
            f"{directory} holds its weights as a pickle ({pickles[0]}), which can run code when it is read, and no "
            "*.safetensors; give a directory with safetensors weights. If you trust the pickle, load it with "
            "transformers and write it back with save_pretrained"
        )


def read_config(path: str | Path) -> Any:
    """Read the transformers configuration of a directory or hub name. Never runs code that comes with a model.

    Raises what transformers raises: OSError, ValueError.
    """
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(path, trust_remote_code=False)


def read_text_config(setting: str, path: str | Path) -> Any:
    """Read the configuration of a model's text part. Raises UsageError, naming `setting`, if there is no such model."""
    try:
        require_safetensors(path)
        return read_config(path).get_text_config()
    except (OSError, ValueError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise UsageError(
            f"{setting} {str(path)!r} holds no model that transformers can read: {first}; give a Hugging Face "
            "directory with config.json and weights, or a hub name"
        ) from None


def positions_of(config: Any) -> int | None:
    """Return the longest sequence of a text configuration in tokens; None if it does not say."""
    return getattr(config, "max_position_embeddings", None)


def check_same_architecture(policy_dir: str | Path, reference_dir: str | Path) -> None:
    """Compare two models that one engine mixes: it builds both from the policy's `config.json`.

    Raises UsageError naming the first field that changes what a model computes and differs.
    """
    policy, reference = read_config(policy_dir).to_dict(), read_config(reference_dir).to_dict()
    telling = ["architectures", "vocab_size"]
    for field in [*telling, *sorted((policy.keys() | reference.keys()) - set(telling))]:
        if field in _IMMATERIAL or field.endswith(_IMMATERIAL_SUFFIXES):
            continue
        if policy.get(field) != reference.get(field):
            raise UsageError(
                f"the reference {reference_dir} cannot be mixed with the policy {policy_dir}: its {field} is "
                f"{reference.get(field)!r}, the policy's {policy.get(field)!r}; use a reference with the policy's "
                "architecture, sizes and vocabulary"
            )
