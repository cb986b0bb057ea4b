"""Check, before any library reads it, that a setting names a model: a directory, or a name on the hub.

Errors describe the actual content and suggest the intended path. Reads only names of files, and checks whether the hub
answers.
"""

import difflib
import os
import re
import socket
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from actors.errors import UsageError
from actors.foreign.text import shown

PRETRAINED = "smollm2-135m-instruct"
"""Directory below models/ that `make pretrained` writes, and that the preset `chat` trains."""
HUB_SECONDS = 5.0  # to connect

_HUB_URL = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/(datasets/)?([\w.-]+/[\w.-]+)")
HUB_MODEL = re.compile(r"(?:[\w.-]+/)?[\w.-]+")
_CONFIG, _ADAPTER = "config.json", "adapter_config.json"
_OF_MODELS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_GIVE = "give a Hugging Face directory, with config.json and *.safetensors"


def missing_model_remedy(path: str) -> str:
    """Return the remedy for a model directory `path` that does not exist."""
    made = path.rstrip("/").endswith(f"models/{PRETRAINED}")
    return f"`make pretrained` writes models/{PRETRAINED} in a checkout" if made else "give an existing directory"


def hub_name_of(url: str) -> str | None:
    """Return the `owner/name` in a URL of the hub; None for any other text."""
    found = _HUB_URL.match(url)
    return found[2] if found else None


def require_model_place(setting: str, path: str | Path, *, tokenizer: bool = False) -> None:
    """Raise UsageError, naming `setting`, unless `path` may be a model: a directory with config.json, or a hub name.

    A directory of a `tokenizer` needs no config.json.
    """
    text, place = str(path), Path(path).expanduser()
    if not text.strip() or not place.is_dir():
        problem = _no_directory(text, place)
    else:
        problem = None if tokenizer else _no_model(place)
    if problem is not None:
        raise UsageError(f"{setting} {text!r} {shown(problem)}")


def is_offline() -> bool:
    """Return whether the environment forbids the hub's libraries to use the network."""
    return any(os.environ.get(name, "").upper() in ("1", "TRUE", "YES", "ON") for name in _OFFLINE)


_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def hub_problem(error: BaseException) -> str:
    """Say in one line why the download from the hub failed."""
    if is_offline():
        return "HF_HUB_OFFLINE is set, and it is not in this machine's cache"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shown(lines[0] if lines else type(error).__name__, 200)


def _no_directory(text: str, place: Path) -> str | None:
    if not text.strip():
        return f"is empty; {_GIVE}, or a hub name"
    if "://" in text:
        name = hub_name_of(text)
        return f"is a URL; write {name}" if name else f"is a URL; download the model, and {_GIVE}"
    if place.is_file():
        if place.suffix == ".gguf":
            return f"is a GGUF file, which only inference reads; {_GIVE} (examples/gguf_to_huggingface.py converts one)"
        belongs = place.suffix in _OF_MODELS or (place.parent / _CONFIG).is_file()
        return f"is a file; give its directory, {place.parent}" if belongs else f"is a file; {_GIVE}"
    if place.is_symlink():
        return f"is a link to {os.readlink(place)}, which leads nowhere; {_GIVE}"
    if text.startswith((".", "/", "~")) or ("/" in text and place.parent.is_dir()):
        beside = [each.name for each in place.parent.iterdir() if each.is_dir()] if place.parent.is_dir() else []
        near = difflib.get_close_matches(place.name, beside, n=1)
        step = f"nearest: {place.with_name(near[0])}" if near else missing_model_remedy(text)
        return f"does not exist (looked in {Path.cwd()}); {step}"
    if HUB_MODEL.fullmatch(text) is None:
        return f"is no directory (looked in {Path.cwd()}), and no hub name, which is owner/name; {_GIVE}"
    return _no_answer(text)


_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy")


@cache
def _no_answer(name: str) -> str | None:
    """Return an error text if model `name` is not cached and the hub does not answer, else None.

    Saves half a minute of the libraries' retries.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    cached = any(isinstance(try_to_load_from_cache(name, file), str) for file in (_CONFIG, "tokenizer.json"))
    if cached or is_offline() or any(map(os.environ.get, _PROXIES)):
        return None
    address = urlsplit(constants.ENDPOINT)
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), HUB_SECONDS).close()
    except (OSError, ValueError) as error:
        return (
            f"is no directory (looked in {Path.cwd()}), it is not cached here, and the hub {address.hostname} does not "
            f"answer ({error}); {_GIVE}, or a hub name once the hub answers"
        )
    return None


def _no_model(place: Path) -> str | None:
    """Describe a directory that holds no model; None if it holds a model, or an adapter, which others report."""
    try:
        names = sorted(entry.name for entry in place.iterdir())
    except OSError as error:
        return f"cannot be read: {error.strerror}; let this user read it, or give another directory"
    if _CONFIG in names or _ADAPTER in names:
        return None
    inside = [place / "final", place / "hf", *sorted(place.glob("snapshots/*"))[-1:], *map(place.joinpath, names)]
    better = next((each for each in inside if (each / _CONFIG).is_file()), None)
    if better is not None:
        return f"has no config.json; the model is in {better}: give that"
    if "config.yaml" in names and "checkpoints" in names:
        return "is a run without a final model; let it end, or give the hf directory of one of its checkpoints"
    held = f"it holds {', '.join(names[:5])}" if names else "it is empty"
    return f"has no config.json, so it holds no model ({held}); {_GIVE}"
