"""Adapters in real engines, against transformers with peft and a softmax in float64 for every token.

What `test_engine.py` proves of publications of all weights is proven here of adapters, by the same tests.
"""

import gc
import math
import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from actors.adapters import peft_form
from actors.adapters.config import LoraConfig
from actors.errors import TransferInterruptedError, UsageError, WeightMismatchError
from actors.generation.config import GeneratorConfig, OpponentConfig, SamplingConfig
from actors.generation.engine import Engine
from actors.records import Canary, Manifest
from learner.publication.config import PublicationConfig
from learner.publication.publisher import Publisher
from tests.actors.generation.conftest import classes_of_transformers  # noqa: F401
from tests.actors.generation.startup.test_start_files import left_by_engines
from tests.actors.generation.test_engine import (  # noqa: F401
    CANARY,
    NEW_TOKENS,
    STOPS,
    assert_sampled_by,
    corrupt,
    log_probs,
    prompts,
    run,
    test_a_bfloat16_engine_takes_rounded_weights_and_refuses_another_models,
    test_a_canary_that_does_not_fit_is_refused_before_anything_is_loaded,
    test_a_skipped_version_is_claimed_by_no_token_and_an_older_one_is_refused,
    test_aborted_requests_never_come_back,
    test_an_update_in_flight_splits_completions_exactly_and_forgets_cached_prefixes,
    test_behaviour_log_probs_at_temperature_one_are_those_of_transformers,
    test_more_engine_arguments_reach_vllm_and_weights_are_still_proven,
    test_the_prefix_cache_serves_no_other_version_and_would_if_it_were_not_reset,
    test_what_finishes_while_the_canary_is_scored_is_not_lost,
    test_without_a_second_model_opponents_are_sampled_by_the_policy,
)
from tests.fakes.generators import spec_of
from tests.fakes.models import tiny_llama, with_adapter

pytestmark = pytest.mark.vllm

LORA = LoraConfig(rank=5, alpha=7)
"""The scaling is no power of two, and vLLM pads the rank to 8."""
SMOL = Path(__file__).resolve().parents[4] / "models" / "smollm2-135m-instruct"
ASKED = (1, 504, 5345, 282, 4649, 314, 7042, 30)


class World:
    """A base on disk, three adapters of it, and what makes engines and manifests of them. `a` changes nothing."""

    def __init__(self, directory) -> None:
        self.directory = directory
        self.base = tiny_llama(directory / "base", seed=1)
        self.a = with_adapter(directory / "base", LORA, seed=1, spread=0.0)
        self.b, self.c = (with_adapter(directory / "base", LORA, seed=seed) for seed in (2, 3))
        self.publisher = Publisher(PublicationConfig(), directory / "shm")
        self._kept: list[Engine] = []

    def engine(self, name: str = "a", temperature: float = 1.0, dtype: str = "float32", **more) -> Engine:
        """Whatever the name, the engine starts from the base, as a learner does."""
        settings = GeneratorConfig(dtype=dtype, max_model_len=256, max_running_prompts=8, kv_cache_mib=32, **more)
        return self.engine_of(settings, temperature, adapter=LORA)

    def engine_of(self, settings: GeneratorConfig, temperature: float = 1.0, **more) -> Engine:
        sampling = SamplingConfig(max_new_tokens=NEW_TOKENS, temperature=temperature, stop_token_ids=STOPS)
        engine = Engine(spec_of(self.directory / "base", settings, sampling, seed=3, **more))
        self._kept.append(engine)  # the end of one would take what others of this process share
        return engine

    def publish(self, model, version: int, *, change=None, canary=None, dtype=torch.float32) -> Manifest:
        tensors = {name: p.detach().to(dtype, copy=True) for name, p in peft_form.tensors(model).items()}
        if change is not None:
            change(tensors)
        return self.publisher.publish(version, tensors, canary or canary_of(model))


def canary_of(model) -> Canary:
    return Canary(CANARY, tuple(log_probs(model, list(CANARY))))


def settings(**more) -> GeneratorConfig:
    return GeneratorConfig(dtype="float32", max_model_len=256, max_running_prompts=8, kv_cache_mib=32, **more)


def sampled(engine: Engine, count: int = 4, *, seed: int = 11, opponent: bool = False) -> list:
    """Prompts and their completions."""
    asked = prompts(count, 9, seed=seed)
    for name, prompt in asked.items():
        engine.add(name, prompt, opponent=opponent)
    return [(asked[name], completion) for name, completion in run(engine).items()]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("models"))
    yield world
    world.publisher.close()


@pytest.fixture(scope="module")
def engine(world) -> Engine:
    return world.engine(temperature=0.7)


@pytest.fixture(autouse=True)
def any_version_may_come_next(request) -> None:
    if "engine" in request.fixturenames:
        request.getfixturevalue("engine").version = 0


def test_each_of_several_adapters_takes_over_running_requests(world, engine):
    engine.load(world.publish(world.a, 4))
    asked = prompts(6, 9, seed=12)
    for name, prompt in asked.items():
        engine.add(name, prompt)
    finished = dict(engine.step()) | dict(engine.step())
    for version, model in ((5, world.b), (6, world.c)):
        engine.load(world.publish(model, version))
        finished |= dict(engine.step()) | dict(engine.step())
    finished |= run(engine)
    for name, completion in finished.items():
        assert_sampled_by({4: world.base, 5: world.b, 6: world.c}, asked[name], completion, 0.7)
    assert any(set(completion.versions) == {4, 5, 6} for completion in finished.values())
    assert canary_of(world.a) == canary_of(world.base)
    assert min(abs(canary_of(world.b).logprobs[3] - canary_of(each).logprobs[3]) for each in (world.a, world.c)) > 0.1


def test_only_the_named_layers_are_adapted(world):
    lora = LoraConfig(rank=3, alpha=3, targets=["k_proj", "down_proj"])
    engine = world.engine_of(settings(), adapter=lora)
    one = with_adapter(world.directory / "base", lora, seed=4)
    manifest = world.publish(one, 1)
    assert len(manifest.tensors) == 2 * 2 * 2  # layers, targets, A and B
    engine.load(manifest)
    for prompt, completion in sampled(engine):
        assert_sampled_by({1: one}, prompt, completion, 1.0)


NAME = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (corrupt, r"'base_model\.model\.[\w.]+' arrived with other bits"),
        (lambda tensors: tensors.pop(NAME), r"up_proj\.lora_B\.weight' is missing"),
        (lambda tensors: tensors.update(bias=torch.zeros(1)), "'bias' is extra"),
        (lambda tensors: tensors.update({f"x{NAME}": tensors.pop(NAME)}), r"up_proj\.lora_B\.weight' is missing"),
        (lambda tensors: tensors.update({NAME: torch.ones(128, 4)}), r"shape \(128, 4\), .* has \(128, 5\)"),
        (lambda tensors: tensors.update({NAME: torch.ones(5, 128)}), r"shape \(5, 128\), .* has \(128, 5\)"),
    ],
    ids=["corrupted", "missing", "extra", "wrong name", "wrong rank", "transposed"],
)
def test_a_refused_adapter_leaves_the_old_one_at_work(world, engine, change, message):
    version = engine.version + 1
    engine.load(world.publish(world.b, version))
    manifest = world.publish(world.c, version + 1, change=None if change is corrupt else change)
    if change is corrupt:
        corrupt(manifest)
    (name, prompt), *_ = prompts(1, 9, seed=4).items()
    engine.add(name, prompt)
    first = dict(engine.step())
    with pytest.raises(WeightMismatchError, match=message):
        engine.load(manifest)
    assert (engine.failure, engine.version) == (None, version)
    assert_sampled_by({version: world.b}, prompt, (first | run(engine))[name], 0.7)


def test_all_weights_are_refused_by_an_engine_that_takes_adapters(world, engine):
    tensors = {name: tensor.detach() for name, tensor in world.base.named_parameters()}
    manifest = world.publisher.publish(engine.version + 1, tensors, canary_of(world.base))
    with pytest.raises(WeightMismatchError, match=r"'base_model\.model\.model\.layers\.0\.mlp\.down_proj\.lora_A"):
        engine.load(manifest)
    assert engine.failure is None


@pytest.mark.parametrize("transport", ["object_store", "gloo"])
def test_an_adapter_comes_by_every_transport(world, engine, tmp_path, transport):
    version = engine.version + 1
    publisher = Publisher(PublicationConfig(transport=transport, chunk_mib=1), tmp_path)
    tensors = {name: tensor.detach() for name, tensor in peft_form.tensors(world.c).items()}
    manifest = publisher.publish(version, tensors, canary_of(world.c))
    if transport == "object_store":
        chunks = [publisher.chunk(i) for i in range(publisher.chunk_count)]
        before = {name: array.copy() for chunk in chunks for name, array in chunk.items()}
        for array in (array for chunk in chunks for array in chunk.values()):
            array.flags.writeable = False  # as Ray's are: other generators read them
        engine.load(manifest, chunks)
        assert all((chunk[name] == before[name]).all() for chunk in chunks for name in chunk)
    else:
        seat = publisher.sender.open_group(2, 60.0)
        sending = threading.Thread(target=publisher.sender.send, args=(manifest, seat))
        sending.start()
        engine.load(manifest, [replace(seat, rank=1)])
        sending.join()
    publisher.close()
    for prompt, completion in sampled(engine):
        assert_sampled_by({version: world.c}, prompt, completion, 0.7)


def test_an_interrupted_transfer_leaves_the_old_adapter_at_work(world, engine, monkeypatch):
    from actors.generation.receivers import SharedMemoryReceiver

    def interrupted(self, manifest, payload):
        raise TransferInterruptedError("generator-1 failed")

    version = engine.version + 1
    engine.load(world.publish(world.b, version))
    manifest = world.publish(world.c, version + 1)
    with monkeypatch.context() as faulty:
        faulty.setattr(SharedMemoryReceiver, "fetch", interrupted)
        with pytest.raises(TransferInterruptedError, match="generator-1 failed"):
            engine.load(manifest)
    assert (engine.failure, engine.version) == (None, version)
    for prompt, completion in sampled(engine):
        assert_sampled_by({version: world.b}, prompt, completion, 0.7)


def test_an_update_that_did_not_reach_its_publication_is_refused(world, engine):
    version = engine.version + 1
    engine.load(world.publish(world.b, version))
    with pytest.raises(WeightMismatchError, match="to the bit, but the learner's log-probs of the canary moved"):
        engine.load(world.publish(world.b, version + 1, canary=canary_of(world.c)))
    assert engine.failure is None


# ---------------------------------------------------------------- faults on the way into vLLM


def dropped(patch) -> None:
    """The old adapter stays, as it would if vLLM thought that it knew the new one."""
    from vllm.lora.model_manager import LRUCacheLoRAModelManager as Manager

    patch.setattr(Manager, "remove_adapter", lambda self, number: True)


def not_activated(patch) -> None:
    from vllm.lora.model_manager import LRUCacheLoRAModelManager as Manager

    patch.setattr(Manager, "activate_adapter", lambda self, number: True)


def one_layer_skipped(patch) -> None:
    from vllm.lora.layers import RowParallelLinearWithLoRA as Layer

    patch.setattr(Layer, "set_lora", lambda self, index, a, b: None)


def not_scaled(patch) -> None:
    from vllm.lora.lora_weights import LoRALayerWeights as Weights

    patch.setattr(Weights, "optimize", lambda self: self)


def tensors_exchanged(patch) -> None:
    from vllm.lora.layers import MergedColumnParallelLinearWithLoRA as Layer

    put = Layer.set_lora

    def exchanged(self, index, a, b):
        turn = -1 if self.n_slices == 2 else 1
        put(self, index, a[::turn], b[::turn])

    patch.setattr(Layer, "set_lora", exchanged)


def not_multiplied(patch) -> None:
    from actors.generation.lora.cpu_kernels import OneAdapterCPU

    patch.setattr(OneAdapterCPU, "add_lora_linear", lambda self, *args, **kwargs: None)


@pytest.fixture(scope="module")
def in_bfloat16(world) -> Engine:
    """Here an update is far below what log-probs can show."""
    return world.engine(dtype="bfloat16")


@pytest.fixture(autouse=True)
def each_fault_by_itself(request) -> None:
    if "in_bfloat16" in request.fixturenames:
        request.getfixturevalue("in_bfloat16").failure = None


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (dropped, r"layer model\.layers\.0\.\S+ does not hold the adapter that was published"),
        (not_activated, r"the engine's one slot for adapters holds \[None\]"),
        (one_layer_skipped, r"layer model\.layers\.0\.self_attn\.o_proj does not hold"),
        (not_scaled, r"layer model\.layers\.0\.self_attn\.\w+ does not hold"),
        (tensors_exchanged, r"layer model\.layers\.0\.mlp\.gate_proj does not hold"),
        (not_multiplied, r"layer model\.layers\.0\.\S+ does not multiply with the adapter"),
    ],
)
def test_an_adapter_that_does_not_reach_the_layers_is_refused_in_bfloat16(world, in_bfloat16, fault, message):
    """Each after an honest version; the next differs by one small update and is whole again."""
    engine = in_bfloat16
    version = engine.version + 1

    def update(tensors):
        for tensor in tensors.values():
            tensor.view(torch.int16).view(-1)[::100] += version

    def publish(number: int) -> Manifest:
        return world.publish(world.b, number, change=update, canary=short, dtype=torch.bfloat16)

    short = Canary((2, 3), (log_probs(world.b, [2, 3])[0],))
    engine.load(publish(version))
    manifest = publish(version := version + 1)
    with pytest.MonkeyPatch.context() as patch:
        fault(patch)
        with pytest.raises(WeightMismatchError) as refusal:
            engine.load(manifest)
    assert f"version {version}: after loading, " in str(refusal.value)
    assert refusal.match(message)
    assert engine.failure is not None
    engine.failure = None
    engine.load(publish(version + 1))


def test_requests_that_lose_their_adapter_are_caught_in_bfloat16(world, in_bfloat16, monkeypatch):
    """vLLM then samples the base, whose log-probs an adapter of small numbers does not change enough to tell."""
    engine = in_bfloat16
    version, tiny = engine.version + 1, with_adapter(world.directory / "base", LORA, seed=5, spread=1e-3)
    add = engine._llm.add_request
    manifest = world.publish(tiny, version, dtype=torch.bfloat16)
    with monkeypatch.context() as faulty:
        faulty.setattr(engine._llm, "add_request", lambda *args, lora_request, **kwargs: add(*args, **kwargs))
        with pytest.raises(WeightMismatchError, match="computed without the adapter"):
            engine.load(manifest)
    engine.failure = None
    engine.load(world.publish(tiny, version + 1, dtype=torch.bfloat16))


def test_vllm_fails_rather_than_sample_the_base_if_the_adapter_is_gone(world):
    engine = world.engine()
    engine._llm.apply_model(lambda model: model.lora_manager.remove_all_adapters())
    engine.add("one", [2, 3])
    with pytest.raises(Exception, match="nonexistent"):
        engine.step()


# ---------------------------------------------------------------- opponents


def test_an_opponent_that_is_the_reference_is_the_base_without_a_second_model(world):
    """Both kinds of request share batches; vLLM's CPU kernels would give both the adapter."""
    engine = world.engine_of(settings(), adapter=LORA, opponent=OpponentConfig(kind="reference"))
    assert not hasattr(engine._llm.model_config.hf_config, "geometric_mixture")
    long = prompts(1, 140, seed=9)["140-0"]
    engine.load(world.publish(world.b, 1))
    asked = prompts(6, 9, seed=13) | {"140-0": long, "140-1": long}
    for number, (name, prompt) in enumerate(asked.items()):
        engine.add(name, prompt, opponent=number % 2 == 1)
    for name, completion in run(engine).items():
        assert_sampled_by({1: world.base if completion.opponent else world.b}, asked[name], completion, 1.0)
    for opponent in (True, False):  # of the cached prefix each takes its own
        engine.add("again", long, opponent=opponent)
        assert_sampled_by({1: world.base if opponent else world.b}, long, run(engine)["again"], 1.0)


def test_a_mixture_adapts_the_policy_alone(world):
    beta = 0.5
    opponent = OpponentConfig(kind="mixture", beta=beta)
    engine = world.engine_of(settings(), adapter=LORA, opponent=opponent)
    for version, model in ((1, world.b), (2, world.c)):
        engine.load(world.publish(model, version))
        for prompt, completion in sampled(engine):
            assert_sampled_by({version: model}, prompt, completion, 1.0)
        for prompt, completion in sampled(engine, opponent=True):
            tokens = torch.tensor([prompt + list(completion.token_ids)])
            with torch.no_grad():
                ours, base = (each(tokens).logits[0].double().log_softmax(-1) for each in (model, world.base))
            rows = ((1 - beta) * ours + beta * base).log_softmax(-1)[len(prompt) - 1 : -1]
            expected = rows.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0].tolist()
            assert list(completion.logprobs) == pytest.approx(expected, abs=1e-4)


# ---------------------------------------------------------------- a real model


@pytest.mark.pretrained
@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(not (SMOL / "config.json").is_file(), reason="no pretrained model; `make pretrained` brings it")
def test_a_pretrained_model_in_bfloat16_samples_with_each_of_two_adapters(tmp_path):
    """Of 135M parameters an adapter of rank 8 is 1.8%, and it travels in bfloat16 as all weights would."""
    lora = LoraConfig(rank=8, alpha=16)
    config = GeneratorConfig(dtype="bfloat16", max_model_len=256, max_running_prompts=8, kv_cache_mib=64)
    engine = Engine(spec_of(SMOL, config, SamplingConfig(max_new_tokens=24), seed=3, adapter=lora))
    publisher = Publisher(PublicationConfig(), tmp_path / "shm")
    asked = {str(number): [1, 504 + number, 314, 260] for number in range(8)}
    models = [with_adapter(SMOL, lora, seed=seed, spread=0.03).to(torch.bfloat16) for seed in (1, 2)]
    for version, model in enumerate(models, start=1):
        tensors = {name: tensor.detach() for name, tensor in peft_form.tensors(model).items()}
        whole = sum(each.numel() for each in model.parameters()) - sum(each.numel() for each in tensors.values())
        manifest = publisher.publish(version, tensors, Canary(ASKED, tuple(log_probs(model, list(ASKED)))))
        assert sum(math.prod(record.shape) for record in manifest.tensors) == 2_442_240 < 0.03 * whole
        engine.load(manifest)
        for name, prompt in asked.items():
            engine.add(name, prompt)
        off = [[], []]
        for name, completion in run(engine).items():
            tokens = asked[name] + list(completion.token_ids)
            for number, each in enumerate(models):
                expected = log_probs(each, tokens)[len(asked[name]) - 1 :]
                off[number] += [abs(x - y) for x, y in zip(completion.logprobs, expected, strict=True)]
        own, other = (statistics.mean(off[number]) for number in (version - 1, 2 - version))
        assert own < 0.15
        assert other > 5 * own
    publisher.close()


# ---------------------------------------------------------------- several workers

TWO_WORKERS = """
import os, sys
from pathlib import Path
from tests.actors.generation.lora.test_slot import World, assert_sampled_by, sampled

if __name__ == "__main__":
    world = World(Path(sys.argv[1]))
    engine = world.engine(tensor_parallel_size=2)
    for version, model in ((1, world.b), (2, world.c)):
        engine.load(world.publish(model, version))
        for prompt, completion in sampled(engine):
            assert_sampled_by({version: model}, prompt, completion, 1.0)
    world.publisher.close()
    print("sampled", flush=True)
    os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
def test_two_workers_hold_a_share_each_sample_as_one_and_leave_nothing_when_they_are_killed(tmp_path, short_dir):
    """The model has two heads and one key-value head, which both workers hold."""
    script = tmp_path / "engine.py"
    script.write_text(TWO_WORKERS)
    root, before = Path(__file__).resolve().parents[4], left_by_engines(short_dir)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "TMPDIR": str(short_dir)},
        capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (-9, ["sampled"]), done.stderr[-3000:]
    assert left_by_engines(short_dir) <= before


# ---------------------------------------------------------------- what engines cannot adapt, last of all


@pytest.fixture
def collected() -> Iterator[None]:
    """End the engine that was refused here and not in the middle of another."""
    yield
    gc.collect()


def test_a_layer_that_vllm_ignores_is_named_at_the_start(world, monkeypatch, collected):
    from vllm.lora.model_manager import LoRAModelManager as Manager

    register = Manager.register_module

    def without_one(self, name, module):
        if name != "model.layers.1.mlp.down_proj":
            register(self, name, module)

    monkeypatch.setattr(Manager, "register_module", without_one)
    with pytest.raises(UsageError, match=r"no adapter to 'model\.layers\.1\.mlp\.down_proj' .*\.publish to merged"):
        world.engine()


def test_an_architecture_without_adapters_in_vllm_is_refused(world, monkeypatch, collected):
    from vllm.v1.worker import lora_model_runner_mixin

    monkeypatch.setattr(lora_model_runner_mixin, "supports_lora", lambda model: False)
    with pytest.raises(UsageError, match=r"LlamaForCausalLM does not support LoRA yet; set learner\.lora\.publish"):
        world.engine()


def test_an_average_of_policies_is_refused_with_what_to_set(world):
    with pytest.raises(UsageError, match=r"kind is ema, but .* set learner\.lora\.publish to merged"):
        world.engine_of(settings(), adapter=LORA, opponent=OpponentConfig(kind="ema"))
