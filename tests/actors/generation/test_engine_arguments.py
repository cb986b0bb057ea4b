"""The list of vLLM's engine arguments against vLLM's own, and what is said of those that may not be set."""

from __future__ import annotations

import ast
import dataclasses
import re
import types
import typing
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from actors.generation.engine_arguments import _SETTINGS, ALLOWED, REFUSED, checked_arguments
from launch.settings.fields import settings
from launch.settings.run import RunConfig

ROOT = Path(__file__).resolve().parents[3]


def fields_of_vllm() -> set[str]:
    """The fields of `EngineArgs`, read from vLLM's source, which takes ten seconds to import."""
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    source = Path(spec.submodule_search_locations[0]) / "engine" / "arg_utils.py"
    classes = {each.name: each for each in ast.parse(source.read_text()).body if isinstance(each, ast.ClassDef)}
    fields = [each.target for each in classes["EngineArgs"].body if isinstance(each, ast.AnnAssign)]
    return {each.id for each in fields if isinstance(each, ast.Name)}


def test_every_argument_of_vllm_is_allowed_or_refused_and_no_other_is_named() -> None:
    """A new vLLM may bring an argument that breaks a proof: somebody decides on it first."""
    assert set(ALLOWED) | set(REFUSED) == fields_of_vllm()
    assert set(ALLOWED) & set(REFUSED) == set()


def test_what_the_engine_sets_itself_is_refused() -> None:
    """All but the number of tokens in a step, which is a default."""
    tree = ast.parse((ROOT / "actors/generation/startup/build.py").read_text())
    (call,) = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "EngineArgs"
    ]
    own = {keyword.arg for keyword in call.keywords if keyword.arg is not None}
    assert {"model", "dtype", "seed", "async_scheduling", "logprobs_mode", "worker_extension_cls"} <= own
    assert own <= set(REFUSED)
    others = {"load_format", "model_loader_extra_config", "distributed_executor_backend", "logits_processors"}
    assert others | {"hf_overrides", "speculative_config", "quantization", "kv_cache_dtype", "enable_lora"} <= set(
        REFUSED
    )


def test_every_setting_to_use_instead_exists() -> None:
    known = {setting.key for setting in settings(RunConfig)}
    named = {name for text in _SETTINGS.values() for name in re.findall(r"\b[a-z]+\.[a-z_]+", text)}
    assert named
    assert named <= known


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"dtype": "float32"}, "dtype cannot be set here: Offbeat sets it; set generators.dtype"),
        ({"seed": 1}, "set seed"),
        ({"tensor_parallel_size": 2}, "set generators.tensor_parallel_size"),
        ({"speculative_config": {}}, "a draft's weights would stay behind at a weight sync"),
        ({"quantization": "fp8"}, "every layer must compute with the published weights to the bit"),
        ({"kv_cache_dtype": "fp8"}, "it rounds differently from the learner"),
        ({"async_scheduling": True}, "set generators.async_scheduling"),
        ({"data_parallel_size": 2}, "each generator is an engine of its own; set generators.count"),
        ({"pipeline_parallel_size": 2}, "workers of an engine share its tensors on one node"),
        ({"nnodes": 2}, "set generators.tensor_parallel_size to the GPUs of a node at most"),
        ({"enable_sleep_mode": True}, "a weight sync must reach every weight where the engine keeps it"),
        ({"enable_lora": True}, "Offbeat sets it by learner.lora"),
        ({"max_lora_rank": 8}, "the learner's adapter and no other"),
        ({"blok_size": 16}, "blok_size is not one of vLLM's engine arguments; nearest: block_size"),
        ({"block_size": "16"}, "block_size is '16'; allowed is an integer"),
        ({"block_size": True}, "block_size is True; allowed is an integer"),
        ({"watermark": "much"}, "watermark is 'much'; allowed is a number"),
        ({"enable_chunked_prefill": 1}, "enable_chunked_prefill is 1; allowed is true | false"),
        ({"compilation_config": 3}, "allowed is a section of `key: value` lines"),
        ({"cudagraph_capture_sizes": 4}, "allowed is a list"),
    ],
)
def test_an_argument_that_may_not_be_set_is_refused_with_the_reason(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        checked_arguments(given)


def test_other_arguments_are_passed_on_as_they_are() -> None:
    given = {
        "block_size": 16,
        "watermark": 0,
        "attention_backend": "FLASH_ATTN",
        "cudagraph_capture_sizes": [1, 2, 4],
        "compilation_config": {"mode": 3},
        "enable_chunked_prefill": False,
    }
    assert checked_arguments(given) == given
    assert checked_arguments(None) == {}


@pytest.mark.vllm
def test_the_kind_of_every_argument_is_that_of_its_type_in_vllm() -> None:
    from vllm import EngineArgs

    hints = {field.name: field.type for field in dataclasses.fields(EngineArgs)}
    assert {name: kind for name, kind in ALLOWED.items() if kind not in kinds_of(hints[name])} == {}


def kinds_of(hint: Any) -> set[str]:
    """The kinds of values that a type takes, as YAML writes them."""
    if get_origin(hint) in (typing.Union, types.UnionType):
        return {kind for each in get_args(hint) for kind in kinds_of(each)}
    if get_origin(hint) is typing.Annotated:
        return kinds_of(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return {"text"}
    plain = {bool: "boolean", int: "integer", float: "number", str: "text", list: "list", dict: "mapping"}
    for each, kind in plain.items():
        if hint is each or get_origin(hint) is each:
            return {kind}
    if isinstance(hint, type) and issubclass(hint, int):
        return {"integer"}  # vLLM's enumeration of levels
    return {"mapping", "text"}  # a configuration, or an enumeration by name
