"""Read a model's files, by directory or hub name: its configuration, and the weights that it must hold.

Every process that loads a model or reads its directory does so here, so that all of them decide alike.
transformers and torch are imported by the functions that need them.
"""

import contextlib
import io
import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.errors import UsageError
from actors.foreign.documents import RESTORE, read_object, with_sizes
from actors.foreign.model_place import hub_problem, require_model_place
from actors.foreign.tensor_files import no_weights, read_header, weight_files
from actors.foreign.text import first_line

Shape = tuple[int, ...]
Mismatch = tuple[str, Shape, Shape]  # name, shape in the files, shape in the model

CLASSIFIER_HEAD, LANGUAGE_HEAD = "score.weight", "lm_head.weight"
"""Names of the output projections of decoders of transformers: the only weights in which the two kinds differ."""

_HUB_FILES, _HUB_WEIGHTS = ["*.json", "*.txt", "*.model", "*.jinja"], ["*.safetensors"]
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

DTYPE_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
"""Torch's names of dtypes, by those of safetensors."""

ADAPTER_CONFIG = "adapter_config.json"  # of peft
# Fields of config.json that do not change what a model computes.
_IMMATERIAL = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "initializer_range"}
_IMMATERIAL_SUFFIXES = ("_token_id", "dropout", "_pdrop")


def resolve(path: str | Path, *, weights: bool = True) -> Path:
    """Return the local directory of a model or tokenizer; download it if `path` is a hub name.

    Without `weights`, downloads only configuration and tokenizer. Raises UsageError if `path` is neither a directory
    nor a hub name.
    """
    require_model_place("model", path, tokenizer=not weights)
    if Path(path).is_dir():
        if weights:
            require_no_adapter(path)
        return Path(path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(path), allow_patterns=[*_HUB_FILES, *(_HUB_WEIGHTS if weights else [])]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UsageError(
            f"model {str(path)!r} is neither a directory nor a hub name that can be downloaded (looked in "
            f"{Path.cwd()}; {hub_problem(error)}); give the directory of a Hugging Face model"
        ) from error


def require_no_adapter(path: str | Path) -> None:
    """Raise UsageError if a directory holds a LoRA adapter instead of a model."""
    file = Path(path) / ADAPTER_CONFIG
    if file.is_file() and not (Path(path) / "config.json").is_file():
        base = read_object(file).get("base_model_name_or_path")
        raise UsageError(
            f"{path} holds a LoRA adapter of {base}, not a model; make one with `offbeat merge "
            f"{shlex.quote(str(path))} DIRECTORY`, and give that directory"
        )


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

    Raises OSError and ValueError as transformers, and UsageError if config.json is no JSON object or its values make no
    configuration.
    """
    from transformers import AutoConfig

    require_no_adapter(path)
    if (file := Path(path).expanduser() / "config.json").is_file():
        read_object(file)
    try:
        return with_sizes(AutoConfig.from_pretrained(path, trust_remote_code=False), str(path))
    except (OSError, ValueError, UsageError):
        raise
    except Exception as error:  # values of a wrong type or size raise anything
        raise UsageError(
            f"config.json of '{path}' makes no configuration: {' '.join(str(error).split())}; {RESTORE}"
        ) from error


def read_text_config(setting: str, path: str | Path) -> Any:
    """Read the configuration of a model's text part. Raises UsageError, naming `setting`, if there is no model."""
    require_model_place(setting, path)
    try:
        require_safetensors(path)
        return read_config(path).get_text_config()
    except (OSError, ValueError) as error:
        why = first_line(error) if Path(path).is_dir() else hub_problem(error)
        raise UsageError(
            f"{setting} {str(path)!r} holds no model that transformers can read: {why}; give a "
            "Hugging Face directory with config.json and weights, or a hub name"
        ) from None


def require_unquantised(path: str | Path) -> None:
    """Raise UsageError if a model's weights are quantised: training and weight sync need them whole."""
    quantisation = getattr(read_config(path), "quantization_config", None)
    if quantisation:
        method = quantisation.get("quant_method") if isinstance(quantisation, dict) else type(quantisation).__name__
        raise UsageError(
            f"'{path}' is quantised ({method}), and training and weight sync need whole weights; give the model that "
            "it was made from"
        )


def positions_of(config: Any) -> int | None:
    """Return the longest sequence of a text configuration in tokens; None if it states no limit."""
    return getattr(config, "max_position_embeddings", None)


def check_same_architecture(policy_dir: str | Path, reference_dir: str | Path) -> None:
    """Check that one engine can mix two models: it builds both from the policy's `config.json`.

    Raises UsageError, naming the first differing field that changes a model's outputs.
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


# ---------------------------------------------------------------- weights


def file_tensors(model_dir: str | Path) -> dict[str, tuple[Shape, str]]:
    """Read names, shapes and dtypes from the safetensors headers of a Hugging Face directory.

    Raises UsageError if there are no weights, or a file is damaged or named outside the directory.
    """
    directory = Path(model_dir)
    files = weight_files(directory)
    if not files:
        raise UsageError(no_weights(directory))
    return {
        name: (tuple(entry["shape"]), DTYPE_NAMES.get(entry["dtype"], entry["dtype"]))
        for file in files
        for name, entry in read_header(file).items()
    }


def load_complete(
    model_class: Any, path: str | Path, dtype: str, *, may_lack: Collection[str] = (), **options: Any
) -> tuple[Any, list[str]]:
    """Load a transformers model on the CPU, in evaluation mode, if its files hold all of its weights.

    Args:
        model_class: an auto class of transformers, such as `AutoModelForCausalLM`.
        path: directory or hub name.
        dtype: `float32` or `bfloat16`.
        may_lack: names of weights that may be missing and then are random: those of a new head.
        options: further arguments of `from_pretrained`.

    Returns the model, and the weights that were missing. Raises UsageError, naming weights that are missing or have
    another shape; OSError, ValueError and RuntimeError as transformers. `outline` lists unused names.
    """
    import torch

    local = Path(path).expanduser()
    require_safetensors(local)
    for file in weight_files(local) if local.is_dir() else ():
        read_header(file)  # for a damaged file transformers raises errors that nobody catches
    options = {**attention_of(read_config(path)), **options}
    with quiet():
        model, loading = model_class.from_pretrained(
            str(local) if local.is_dir() else str(path),
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            **options,
        )
    missing, kind = sorted(loading["missing_keys"]), type(model).__name__
    lacking = [name for name in missing if name not in may_lack]
    _refuse_incomplete(path, kind, lacking, _mismatches(loading["mismatched_keys"]))
    _refuse_untied(path, model)
    return model.eval(), missing


def attention_of(config: Any) -> dict[str, str]:
    """Return the options that make transformers build a model with the attention that its engine computes."""
    # Torch's fused attention silently drops a cap on attention's logits, so it would not compute the engine's function.
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    return {"attn_implementation": "eager"} if capped else {}


@dataclass(frozen=True, slots=True)
class Outline:
    """The tensors of a model, and the differences in its files. Made by `outline`."""

    kind: str  # class of the model in transformers
    tensors: dict[str, tuple[Shape, str]]
    """Shape and dtype of each tensor, by its name in saved checkpoints; tied tensors once."""
    missing: list[str]  # tensors of the model that no file holds
    mismatched: list[Mismatch]
    unused: list[str]  # names in the files that the model does not load

    def require_complete(self, path: str | Path, may_lack: Collection[str] = ()) -> None:
        """Raise UsageError if `load_complete` would refuse the weights."""
        lacking = [name for name in self.missing if name not in may_lack]
        _refuse_incomplete(path, self.kind, lacking, self.mismatched)


def outline(model_dir: str | Path, model_class: Any = None, **options: Any) -> Outline:
    """Compare the model of a `config.json` with the headers of its files. Reads no weights.

    `model_class` is an auto class of transformers, None for `AutoModelForCausalLM`; `options` override fields of the
    configuration. Renames and merges tensors as transformers does on loading and saving, on torch's meta device.
    Raises UsageError if there is no model or a file is damaged.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    require_safetensors(model_dir)
    held = {
        name: torch.empty(shape, dtype=getattr(torch, dtype, torch.uint8), device="meta")
        for name, (shape, dtype) in file_tensors(model_dir).items()
    }
    try:
        config = AutoConfig.from_pretrained(model_dir, trust_remote_code=False, **options)
        with torch.device("meta"), quiet():
            model = (model_class or AutoModelForCausalLM).from_config(config, trust_remote_code=False)
            settings = LoadStateDictConfig(
                ignore_mismatched_sizes=True,
                device_map={"": torch.device("meta")},
                weight_mapping=get_model_conversion_mapping(model),
            )
            loading, _ = convert_and_load_state_dict_in_model(model, _once(held, model), settings)
            unused = sorted(loading.unexpected_keys)  # before transformers drops the names that it never reports
            model.tie_weights(missing_keys=loading.missing_keys, recompute_mapping=False)
            model._adjust_missing_and_unexpected_keys(loading)
    except Exception as error:  # values of a wrong type or size raise anything
        raise UsageError(
            f"{model_dir} holds no model that transformers can build: {first_line(error)}; give a Hugging Face "
            "directory with config.json and weights"
        ) from None
    saved = checkpoint_names(model, unique_tensors(model))
    return Outline(
        kind=type(model).__name__,
        tensors={name: (tuple(each.shape), str(each.dtype).removeprefix("torch.")) for name, each in saved.items()},
        missing=sorted(loading.missing_keys),
        mismatched=_mismatches(loading.mismatched_keys),
        unused=unused,
    )


def unique_tensors(model: Any) -> dict[str, Any]:
    """Return parameters and persistent buffers by name, as in a checkpoint: tied ones once, under the first name."""
    named: dict[str, Any] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            named[name] = tensor
    return named


def checkpoint_names(model: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Return `state` in the names and layout of `save_pretrained`. Some architectures use others in memory."""
    from transformers.core_model_loading import revert_weight_conversion

    return revert_weight_conversion(model, state)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' report on a checkpoint: our code refuses or lists all that matters in it.

    Also silence DeepSpeed, which transformers imports to save a model, and which prints its findings.
    """
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _once(held: dict[str, Any], model: Any) -> dict[str, Any]:
    """Leave out repeated tensors of the files that the model ties."""
    repeated = {target for target, source in model.all_tied_weights_keys.items() if source in held}
    return {name: tensor for name, tensor in held.items() if name not in repeated}


def _mismatches(keys: Collection[Any]) -> list[Mismatch]:
    return sorted((name, tuple(found), tuple(wanted)) for name, found, wanted in keys)


def _refuse_incomplete(path: str | Path, kind: str, missing: Sequence[str], mismatched: Sequence[Mismatch]) -> None:
    if mismatched:
        name, found, wanted = mismatched[0]
        others = f" ({len(mismatched)} such weights in all)" if len(mismatched) > 1 else ""
        raise UsageError(
            f"the weight {name!r} of '{path}' has the shape {found} in its files, and {kind} needs {wanted}"
            f"{others}; use the config.json that belongs to the weights, or another model"
        )
    if missing:
        raise UsageError(
            f"'{path}' lacks the weights {listed(missing)} of {kind}, which would be random; restore its files, or "
            "give the directory of such a model"
        )


def _refuse_untied(path: str | Path, model: Any) -> None:
    """Raise UsageError if weights that config.json ties differ in the files: engine and learner would untie them
    differently."""
    if getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
        if head is not None and head.weight is not embedding.weight:
            raise UsageError(
                f"config.json of '{path}' ties the output projection to the embedding, and its files hold two "
                'different ones; set "tie_word_embeddings": false in config.json if both are meant'
            )


def listed(names: Sequence[str], shown: int = 3) -> str:
    """Return the first names, quoted, and the number of further names."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(f"{name!r}" for name in names[:shown]) + more


def answer_ends(model_dir: str | Path, tokenizer: Any) -> tuple[int, ...]:
    """Return every token id that ends an answer, ascending.

    These are the end-of-sequence ids of the tokenizer, of `generation_config.json` and of `config.json` together:
    models may name their end of turn in one place and their end of text in another. Raises UsageError if no place
    names an id, or a file is unreadable.
    """
    ends = {each for name in ("generation_config.json", "config.json") for each in _eos_of(Path(model_dir) / name)}
    if tokenizer.eos_token_id is not None:
        ends.add(tokenizer.eos_token_id)
    if not ends:
        raise UsageError(
            f"nothing ends an answer of {model_dir}: neither its tokenizer nor generation_config.json or config.json "
            "has an end-of-sequence token; set eos_token in tokenizer_config.json"
        )
    return tuple(sorted(ends))


def _eos_of(path: Path) -> Iterator[int]:
    """Yield the values of `eos_token_id` in a configuration file and its text part."""
    if not path.is_file():
        return
    try:
        config = read_object(path)
        for part in (config, config.get("text_config") or {}):
            ids = part.get("eos_token_id")
            for each in [] if ids is None else ids if isinstance(ids, list) else [ids]:
                if isinstance(each, bool) or not isinstance(each, int):
                    raise ValueError(f"eos_token_id is {ids!r}, not a token id or a list of them")
                yield each
    except (ValueError, AttributeError) as error:
        raise UsageError(f"{path} cannot be read: {error}; restore it from its source") from error
