"""Where a model's files are: a local directory, whether the model was named by path or by hub name."""

from __future__ import annotations

from pathlib import Path

from actors.errors import UsageError

_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]


def resolve(path: str | Path) -> Path:
    """The local directory of a model: `path` itself, or the downloaded copy when it is a hub name.

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
