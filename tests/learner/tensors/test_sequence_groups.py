"""Which ranks compute a micro-batch together, and which models they cannot split."""

import pytest
from transformers import Gemma2Config, LlamaConfig

from actors.errors import UsageError
from learner.tensors.sequence_groups import check_heads, share_of, split_sequences
from tests.learner.tensors.test_shared_prompts import SUPPORTED, UNSUPPORTED, policy_of


def test_ranks_next_to_each_other_share_a_micro_batch_and_one_reports_it():
    assert [tuple(share_of(rank, 4, 2)) for rank in range(4)] == [
        (0, 2, True), (0, 2, False), (1, 2, True), (1, 2, False)
    ]  # fmt: skip
    assert [tuple(share_of(rank, 3, 1)) for rank in range(3)] == [(0, 3, True), (1, 3, True), (2, 3, True)]


def test_without_a_split_nothing_is_asked_of_a_model():
    policy = policy_of(next(iter(UNSUPPORTED.values())))
    split_sequences(policy, 1, "/m")
    assert policy.sequences is None


def test_heads_must_be_divided():
    with pytest.raises(UsageError, match=r"3 does not divide the 4 attention heads of /m; set it to one of 1, 2, 4"):
        split_sequences(policy_of(SUPPORTED["llama"]), 3, "/m")


def test_attention_that_shares_no_prompts_is_refused():
    config = next(config for config in UNSUPPORTED.values() if isinstance(config, Gemma2Config))
    with pytest.raises(UsageError, match=r"sequence_parallel 2 needs attention that shares prompts.*Gemma2ForCausalLM"):
        split_sequences(policy_of(config), 2, "/m")


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_embeddings_of_the_longest_position_are_refused(kind):
    factors = {"short_factor": [1.0] * 4, "long_factor": [1.0] * 4} if kind == "longrope" else {}
    rope = {"rope_type": kind, "factor": 2.0, "rope_theta": 1e4, "original_max_position_embeddings": 32} | factors
    config = LlamaConfig(hidden_size=32, num_attention_heads=4, max_position_embeddings=64, rope_parameters=rope)
    check_heads(config, 1, "/m")
    with pytest.raises(UsageError, match=rf"rotary embeddings of /m \({kind}\) depend on their whole length"):
        check_heads(config, 2, "/m")
    llama3 = rope | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    check_heads(LlamaConfig(hidden_size=32, num_attention_heads=4, rope_parameters=llama3), 2, "/m")
