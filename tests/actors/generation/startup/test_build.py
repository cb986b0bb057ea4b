"""How an engine is built, as far as no engine is needed."""

import pytest

from actors.errors import UsageError
from actors.generation.config import GeneratorConfig
from actors.generation.startup.build import build, refusal
from tests.fakes.generators import spec_of
from tests.fakes.models import tiny_llama


@pytest.mark.parametrize(("cpu", "named", "other"), [(True, "kv_cache_mib 96", "gpu_"), (False, "gpu_memory_", "kv_")])
def test_an_engine_that_does_not_start_names_the_setting_of_its_own_platform(cpu: bool, named: str, other: str) -> None:
    """On a GPU without enough free memory the message spoke of kv_cache_mib, which only CPU engines read."""
    config = GeneratorConfig(kv_cache_mib=96, gpu_memory_utilization=0.5)
    text = refusal("/model", config, ValueError("Free memory is less than desired"), cpu=cpu)
    assert named in text
    assert other not in text
    assert "Free memory is less than desired; change the setting that it names" in text
    assert cpu or "gpu_memory_utilization 0.5" in text


def test_a_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"has no config\.json"):
        build(spec_of(tmp_path))


@pytest.mark.vllm
def test_asynchronous_scheduling_is_refused_where_vllm_turns_it_off(tmp_path):
    """vLLM says nothing of it on CPU: the run would go on without what was asked for."""
    tiny_llama(tmp_path / "model", seed=1)
    config = GeneratorConfig(dtype="float32", max_model_len=64, kv_cache_mib=16, async_scheduling=True)
    with pytest.raises(UsageError, match=r"generators\.async_scheduling is true, and vLLM has it .* on GPUs only"):
        build(spec_of(tmp_path / "model", config))
