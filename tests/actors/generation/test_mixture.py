"""Two random models in one engine, against transformers with a softmax in float64 for every token."""

import math
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

from actors.errors import UsageError, WeightMismatchError
from actors.generation.config import GeneratorConfig, OpponentConfig, SamplingConfig
from actors.generation.engine import Engine, engine_environment
from actors.records import Canary
from learner.publication.config import PublicationConfig
from learner.publication.publisher import Publisher
from tests.fakes.canaries import canary_tokens
from tests.fakes.generators import spec_of
from tests.fakes.models import tiny_llama

pytestmark = pytest.mark.vllm

VOCABULARY = 96
BETAS = (None, 0.0, 0.125, 0.5, 0.9, 1.0)
LONG = 300
"""Prompt tokens; the engine caches prefixes in blocks of 128 tokens on CPU."""
DRAWS = 4000


def tiny_qwen3(directory, *, seed: int):
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=0.1,
        tie_word_embeddings=True,
    )
    return saved(Qwen3ForCausalLM, config, directory, seed)


def tiny_gpt2(directory, *, seed: int):
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=2, n_positions=512, initializer_range=0.2, eos_token_id=1
    )
    return saved(GPT2LMHeadModel, config, directory, seed)


def saved(kind, config, directory, seed):
    torch.manual_seed(seed)
    model = kind(config).eval()
    model.save_pretrained(directory)
    return model


ARCHITECTURES = {"llama": tiny_llama, "qwen3-tied": tiny_qwen3, "gpt2-tied": tiny_gpt2}


def log_softmax(model, token_ids) -> torch.Tensor:
    """[tokens, vocabulary], of the token after each one; float64."""
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([token_ids])).logits[0].double(), -1)


def mixture(policy, reference, beta, token_ids, temperature: float = 1.0) -> torch.Tensor:
    """[tokens, vocabulary]: log-probs of the mixture, by its formula."""
    mixed = (1 - (beta or 0)) * log_softmax(policy, token_ids) + (beta or 0) * log_softmax(reference, token_ids)
    return torch.log_softmax(mixed / temperature, -1)


def random_prompts(count: int, longest: int, seed: int, shortest: int = 1) -> list[list[int]]:
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=random).tolist()
    return [torch.randint(2, VOCABULARY, (length,), generator=random).tolist() for length in lengths]


# The plugin by itself, in vLLM's own front end.


@pytest.fixture(scope="module", params=["llama", "qwen3-tied", pytest.param("gpt2-tied", marks=pytest.mark.long)])
def pair(request, tmp_path_factory):
    """Policy, reference and an engine that holds both."""
    os.environ.update(engine_environment(GeneratorConfig()))
    from vllm import LLM

    from actors.generation import mixture as plugin

    directory = tmp_path_factory.mktemp(request.param)
    make = ARCHITECTURES[request.param]
    policy, reference = (make(directory / name, seed=seed) for seed, name in enumerate(("policy", "reference")))
    plugin.register()
    llm = LLM(
        str(directory / "policy"),
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=400,
        max_num_seqs=64,
        enforce_eager=True,
        kv_cache_memory_bytes=64 << 20,
        logprobs_mode="processed_logprobs",
        seed=5,
        **plugin.engine_arguments(directory / "policy", directory / "reference"),
    )
    return SimpleNamespace(policy=policy, reference=reference, llm=llm)


def sample(llm, prompts, betas, *, tokens, **settings):
    """One list of outputs for each prompt; `tokens` is how many each of them gets."""
    from vllm import SamplingParams

    from actors.generation.mixture import BETA

    params = [
        SamplingParams(
            max_tokens=count,
            ignore_eos=True,
            detokenize=False,
            extra_args=None if beta is None else {BETA: beta},
            **settings,
        )
        for beta, count in zip(betas, tokens, strict=True)
    ]
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    return [output.outputs for output in outputs]


def test_greedy_tokens_are_the_mixture_s_at_every_beta_of_one_batch(pair):
    prompts = random_prompts(2, 9, seed=1, shortest=9)
    asked = [(prompt, beta) for prompt in prompts for beta in BETAS]
    outputs = sample(pair.llm, *zip(*asked, strict=True), tokens=[24] * len(asked), temperature=0.0)
    chosen = {}
    for (prompt, beta), (output,) in zip(asked, outputs, strict=True):
        tokens = prompt + list(output.token_ids)
        expected = mixture(pair.policy, pair.reference, beta, tokens).argmax(-1)[len(prompt) - 1 : -1]
        assert list(output.token_ids) == expected.tolist()
        chosen[tuple(prompt), beta or 0.0] = tuple(output.token_ids)
    # The betas do something: at least the two ends and the middle go different ways.
    assert all(len({chosen[tuple(prompt), beta] for beta in (0.0, 0.5, 1.0)}) == 3 for prompt in prompts)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_behaviour_log_prob_is_that_of_the_mixture_after_temperature(pair, temperature):
    """Lengths differ, and more requests are asked for than run together: rows of the batch come, go and move."""
    prompts = random_prompts(80, 20, seed=2)
    betas = [BETAS[i % 7 % len(BETAS)] for i in range(len(prompts))]
    lengths = [3 + i * 5 % 17 for i in range(len(prompts))]
    outputs = sample(pair.llm, prompts, betas, tokens=lengths, temperature=temperature, logprobs=0)
    for prompt, beta, (output,) in zip(prompts, betas, outputs, strict=True):
        tokens = prompt + list(output.token_ids)
        expected = mixture(pair.policy, pair.reference, beta, tokens, temperature)[len(prompt) - 1 : -1]
        for token, found, row in zip(output.token_ids, output.logprobs, expected, strict=True):
            assert found[token].logprob == pytest.approx(row[token].item(), abs=1e-4)


def deviation(counts: torch.Tensor, log_probs: torch.Tensor) -> float:
    """Chi-square of `counts` as a standard normal deviate (Wilson and Hilferty); cells below 5 expected are pooled."""
    expected = counts.sum() * log_probs.exp()
    common = expected >= 5
    cells = list(zip(counts[common], expected[common], strict=True))
    if not common.all():
        cells.append((counts[~common].sum(), expected[~common].sum()))
    chi_square = sum(((c - e) ** 2 / e).item() for c, e in cells)
    freedom = len(cells) - 1
    return ((chi_square / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))


def test_first_tokens_are_drawn_from_the_mixture(pair):
    prompt = random_prompts(1, 9, seed=3)[0]
    (outputs,) = sample(pair.llm, [prompt], [0.5], tokens=[1], temperature=1.0, n=DRAWS)
    counts = torch.bincount(torch.tensor([output.token_ids[0] for output in outputs]), minlength=VOCABULARY)
    assert counts.sum() == DRAWS
    assert deviation(counts, mixture(pair.policy, pair.reference, 0.5, prompt)[-1]) < 3.72  # p > 1e-4
    for beta in (0.0, 1.0):
        assert deviation(counts, mixture(pair.policy, pair.reference, beta, prompt)[-1]) > 10


def test_compiled_policy_and_reference_never_share_a_file(pair):
    """vLLM names the file of a compiled model by these factors and its class, and loads whatever lies there."""
    from vllm.compilation.caching import aot_compile_hash_factors

    def factors(model):
        parts = (model.policy, model.reference)
        compiled = [next(m for m in part.modules() if hasattr(m, "do_not_compile")) for part in parts]
        return [aot_compile_hash_factors(module.vllm_config) for module in compiled]

    ((policy, reference),) = pair.llm.apply_model(factors)
    assert policy != reference


def test_a_request_with_a_beta_that_is_no_weight_is_refused(pair):
    from vllm.exceptions import VLLMValidationError

    for beta in (1.5, -0.1, math.nan, "half", True):
        with pytest.raises(VLLMValidationError, match=r"must be a number from 0 \(the policy\) to 1 \(the reference\)"):
            sample(pair.llm, [[2, 3]], [beta], tokens=[1])


# The same inside Offbeat's engine.

CANARY = canary_tokens(VOCABULARY, 32)
TEMPERATURE = 0.7
NEW_TOKENS = 16


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    class World:
        directory = tmp_path_factory.mktemp("models")
        publisher = Publisher(PublicationConfig(), directory / "shm")

        def __init__(self) -> None:
            for seed, name in enumerate(("a", "b", "c")):
                setattr(self, name, tiny_llama(self.directory / name, seed=seed))
                setattr(self, f"tied_{name}", tiny_llama(self.directory / f"tied-{name}", seed=seed, tied=True))

        def engine(self, policy: str, reference: str | None = None, **opponent) -> Engine:
            settings = GeneratorConfig(dtype="float32", max_model_len=400, max_running_prompts=8, kv_cache_mib=32)
            sampling = SamplingConfig(max_new_tokens=NEW_TOKENS, temperature=TEMPERATURE)
            second = None if reference is None else self.directory / reference
            others = {"seed": 3, "opponent": OpponentConfig(**opponent), "reference_dir": second}
            return Engine(spec_of(self.directory / policy, settings, sampling, **others))

        def publish(self, version: int, policy, reference=None):
            tensors = dict(policy.named_parameters())
            if reference is not None:
                tensors |= {f"reference.{name}": tensor for name, tensor in reference.named_parameters()}
            tensors = {name: tensor.detach() for name, tensor in tensors.items()}
            rows = log_softmax(policy, list(CANARY))[:-1]
            logprobs = rows.gather(1, torch.tensor(CANARY[1:])[:, None])[:, 0]
            return self.publisher.publish(version, tensors, Canary(CANARY, tuple(logprobs.tolist())))

    world = World()
    yield world
    world.publisher.close()


@pytest.fixture(scope="module")
def half(world) -> Engine:
    """Policy a; opponents half a, half b. Leaves the reference out of batches of the policy alone."""
    return world.engine("a", "b", kind="mixture", beta=0.5)


def run(engine: Engine) -> dict:
    finished = {}
    while engine.busy:
        finished.update(engine.step())
    return finished


def assert_sampled(prompt, completion, policies, reference, beta) -> None:
    """Every token by the mixture of the reference and the policy of its version."""
    tokens = prompt + list(completion.token_ids)
    rows = {v: mixture(policies[v], reference, beta, tokens, TEMPERATURE) for v in set(completion.versions)}
    for i, (token, found) in enumerate(zip(completion.token_ids, completion.logprobs, strict=True)):
        expected = rows[completion.versions[i]][len(prompt) - 1 + i, token].item()
        assert found == pytest.approx(expected, abs=1e-4)


def test_one_batch_samples_policy_and_opponents_and_says_which(world, half):
    half.load(world.publish(1, world.a))
    prompts = random_prompts(12, 9, seed=4)
    for i, prompt in enumerate(prompts):
        half.add(str(i), prompt, opponent=i % 2 == 1)
    finished = run(half)
    assert len(finished) == 12
    for i, prompt in enumerate(prompts):
        completion = finished[str(i)]
        assert completion.opponent == (i % 2 == 1)
        assert_sampled(prompt, completion, {1: world.a}, world.b, 0.5 if i % 2 else 0.0)


def test_blocks_that_the_policy_alone_cached_never_serve_an_opponent(world, half):
    """The reference's keys and values are missing in them: log-probs would be off by nats."""
    half.load(world.publish(2, world.a))
    prompt = random_prompts(1, LONG, seed=5, shortest=LONG)[0]
    for name, opponent in (("policy", False), ("opponent", True), ("policy again", False), ("opponent again", True)):
        half.add(name, prompt, opponent=opponent)
        completion = run(half)[name]
        assert_sampled(prompt, completion, {2: world.a}, world.b, 0.5 if opponent else 0.0)


def test_the_reference_does_not_run_when_only_the_policy_samples(half):
    calls = []
    half._llm.apply_model(lambda model: model.reference.register_forward_pre_hook(lambda *_: calls.append(1)) and None)
    half.add("policy", [2, 3])
    run(half)
    assert not calls
    half.add("opponent", [2, 3], opponent=True)
    run(half)
    assert calls


def test_running_requests_survive_an_update_that_reaches_the_policy_alone(world, half):
    half.load(world.publish(10, world.a))
    prompts = random_prompts(10, 9, seed=6) + random_prompts(2, LONG, seed=7, shortest=LONG)
    for i, prompt in enumerate(prompts):
        half.add(str(i), prompt, opponent=i % 2 == 1)
    finished = {}
    for _ in range(5):
        finished.update(half.step())
    half.load(world.publish(11, world.c))
    finished |= run(half)
    assert len(finished) == 12
    for i, prompt in enumerate(prompts):
        assert_sampled(prompt, finished[str(i)], {10: world.a, 11: world.c}, world.b, 0.5 if i % 2 else 0.0)
    assert {True, False} == {c.opponent for c in finished.values() if set(c.versions) == {10, 11}}


def test_a_publication_with_the_reference_is_refused_where_the_reference_stands_still(world, half):
    with pytest.raises(WeightMismatchError, match=r"'reference\.lm_head\.weight' is extra"):
        half.load(world.publish(20, world.a, world.c))
    assert half.failure is None


def assert_samples(engine: Engine, policy, reference, beta: float) -> None:
    """Both kinds of request, at the engine's version."""
    prompts = random_prompts(6, 9, seed=8)
    for i, prompt in enumerate(prompts):
        engine.add(str(i), prompt, opponent=i % 2 == 1)
    finished = run(engine)
    for i, prompt in enumerate(prompts):
        assert_sampled(prompt, finished[str(i)], {engine.version: policy}, reference, beta if i % 2 else 0.0)


def repeat_the_head(directory, copy) -> None:
    """A copy of a tied model whose files hold the output projection too, as some tools write them."""
    shutil.copytree(directory, copy)
    tensors = load_file(copy / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})


def test_tied_embeddings_of_policy_and_reference_are_right_after_the_policy_s_reload(world):
    """Files that repeat the projection make vLLM untie it; the reload and the reference would then miss it."""
    repeat_the_head(world.directory / "tied-a", world.directory / "repeating-a")
    engine = world.engine("repeating-a", "tied-b", kind="reference")
    assert_samples(engine, world.tied_a, world.tied_b, 1.0)
    engine.load(world.publish(1, world.tied_c))
    assert_samples(engine, world.tied_c, world.tied_b, 1.0)


def test_an_average_of_past_policies_is_published_beside_the_policy(world):
    engine = world.engine("tied-a", kind="ema")
    engine.load(world.publish(1, world.tied_b, world.tied_c))
    assert_samples(engine, world.tied_b, world.tied_c, 1.0)
    engine.load(world.publish(2, world.tied_b, world.tied_a))
    assert_samples(engine, world.tied_b, world.tied_a, 1.0)
    with pytest.raises(WeightMismatchError, match=r"'reference\.model\.embed_tokens\.weight' is missing"):
        engine.load(world.publish(3, world.tied_b))
    assert_samples(engine, world.tied_b, world.tied_a, 1.0)


# What is refused.


@pytest.mark.parametrize(
    ("field", "value"),
    [("vocab_size", 97), ("num_hidden_layers", 3), ("hidden_size", 128), ("tie_word_embeddings", True)],
)
def test_a_reference_of_other_sizes_is_refused_with_the_field(world, tmp_path, field, value):
    config = world.a.config.to_dict() | {field: value}
    type(world.a.config)(**config).save_pretrained(tmp_path)
    message = rf"its {field} is {value}, the policy's {getattr(world.a.config, field)}"
    with pytest.raises(UsageError, match=message):
        world.engine("a", str(tmp_path), kind="mixture")


def test_a_reference_of_another_architecture_is_refused(world, tmp_path):
    tiny_qwen3(tmp_path, seed=0)
    with pytest.raises(UsageError, match=r"its architectures is \['Qwen3ForCausalLM'\], the policy's \['Llama"):
        world.engine("a", str(tmp_path), kind="mixture")


def test_fields_that_change_no_computation_may_differ(world, tmp_path):
    from actors.hub import check_same_architecture

    config = world.a.config.to_dict() | {"eos_token_id": 5, "use_cache": False, "attention_dropout": 0.1}
    type(world.a.config)(**config).save_pretrained(tmp_path)
    check_same_architecture(world.directory / "a", tmp_path)


def test_a_second_model_that_is_not_there_is_refused(world):
    with pytest.raises(UsageError, match=r"nowhere is not a Hugging Face model directory"):
        world.engine("a", "nowhere", kind="mixture")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"speculative_config": object()}, "speculative decoding"),
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size 2"),
        ({"logits_processors": None}, "needs its logits processor"),
        ({"enable_prompt_embeds": True}, "unset enable_prompt_embeds"),
        ({}, None),
    ],
)
def test_an_engine_that_would_not_sample_the_mixture_is_refused(settings, message):
    from actors.generation.mixture import MixtureLogitsProcessor, check_engine

    values = {
        "speculative_config": None,
        "pipeline_parallel_size": 1,
        "logits_processors": [MixtureLogitsProcessor],
        "enable_prompt_embeds": False,
    } | settings
    config = SimpleNamespace(
        speculative_config=values["speculative_config"],
        parallel_config=SimpleNamespace(pipeline_parallel_size=values["pipeline_parallel_size"]),
        model_config=SimpleNamespace(
            logits_processors=values["logits_processors"], enable_prompt_embeds=values["enable_prompt_embeds"]
        ),
    )
    if message is None:
        check_engine(config)
        return
    with pytest.raises(UsageError, match=message):
        check_engine(config)


def test_registering_again_changes_nothing():
    from vllm import ModelRegistry

    from actors.generation import mixture as plugin

    plugin.register()
    registered = ModelRegistry.models[plugin.ARCHITECTURE]
    plugin.register()
    assert ModelRegistry.models[plugin.ARCHITECTURE] is registered
