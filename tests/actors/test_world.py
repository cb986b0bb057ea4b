"""The embedded world: its language, its two gold preferences and its corpus, against values worked out by hand."""

import math
from collections import Counter
from itertools import product

import numpy as np
import pytest

from actors import world
from actors.errors import UsageError
from actors.records import Completion, Prompt

ROCK, PAPER, SCISSORS = 0, 1, 2


def prompt(index: int) -> Prompt:
    return Prompt(f"world:{index}", world.prompt_token_ids(index), world.prompt_rows()[index]["prompt"])


def completion(*token_ids: int) -> Completion:
    return Completion(token_ids, (0.0,) * len(token_ids), (0,) * len(token_ids), "", token_ids[-1] == world.EOS)


def response(symbols: str) -> Completion:
    """`response("ace")` is stone paper scissors <eos>: a..f stand for the six symbols."""
    return completion(*("abcdef".index(letter) + world.FIRST_SYMBOL for letter in symbols), world.EOS)


def symbols(letters: str) -> tuple[int, ...]:
    return tuple("abcdef".index(letter) for letter in letters)


def test_the_vocabulary_has_eighteen_words_in_their_documented_places():
    words = world.VOCABULARY
    assert len(set(words)) == 18
    assert words[:4] == ("<pad>", "<bos>", "<eos>", "<sep>")
    assert words[4:10] == ("stone", "granite", "paper", "page", "scissors", "shears")
    assert words[10] == "red"
    assert words[14] == "north"


def test_a_generator_stops_at_every_token_that_no_response_may_hold():
    assert set(world.STOP_TOKEN_IDS) == set(range(18)) - {world.EOS} - set(range(4, 10))


def test_there_are_259_responses_and_86_in_each_family():
    assert len(world.RESPONSES) == 1 + 6 + 36 + 216 == 259
    assert Counter(map(world.family, world.RESPONSES)) == {ROCK: 86, PAPER: 86, SCISSORS: 86, world.NO_FAMILY: 1}


def test_a_completion_is_read_from_its_tokens():
    assert world.outcome([world.EOS]) == 0
    for index, y in enumerate(world.RESPONSES):
        assert world.outcome([symbol + 4 for symbol in y] + [world.EOS]) == index
    assert world.OUTCOMES == 261
    said = world.RESPONSES[world.outcome([4, 7, world.EOS])]
    assert [world.RESPONSE_WORDS[symbol] for symbol in said] == ["stone", "page"]


def test_four_symbols_without_eos_are_noeos_and_any_other_token_is_invalid():
    assert world.outcome([4, 5, 6, 7]) == world.NOEOS
    assert world.outcome([4, 5, 6, 7, world.EOS]) == world.NOEOS
    assert world.outcome([4, 5]) == world.NOEOS
    assert world.outcome([4, 5, 6, world.SEP]) == world.INVALID
    for token in world.STOP_TOKEN_IDS:
        assert world.outcome([token]) == world.INVALID


@pytest.mark.parametrize(
    ("p", "q", "letters", "expected"),
    [
        (0, 0, "", -1.0),
        (0, 0, "ace", 3.5),  # every symbol in its place, and a is wanted
        (0, 1, "ace", 3.0),  # b is wanted and absent
        (3, 3, "a", 0.5),  # wanted (3 + 3) mod 6 = a; d belongs in the first place
        (3, 0, "dfb", 3.5),  # places (3 + 2t) mod 6 = d, f, b
        (0, 0, "aaa", 0.5),  # 1 in place + 0.5 wanted - 2 * 0.5 repeats
        (1, 2, "dd", 1.0),  # places b, d: one hit; wanted d; one repeat
    ],
)
def test_the_transitive_reward_counts_places_wish_and_repeats(p, q, letters, expected):
    assert world.reward(p, q, symbols(letters)) == expected


def test_the_best_reward_averages_3_25_over_the_prompts():
    """Places p, p+2, p+4 hold the wanted symbol p+q when q is even: 3.5 for half of the prompts, 3 for the others."""
    assert world.World("transitive").rewards.max(axis=1).mean() == 3.25


def test_a_family_is_the_majority_and_on_a_tie_the_first_symbols():
    assert world.family(symbols("acd")) == PAPER
    assert world.family(symbols("eca")) == SCISSORS
    assert world.family(symbols("ca")) == PAPER
    assert world.family(symbols("abf")) == ROCK


def test_paper_beats_rock_beats_scissors_beats_paper_with_sigma_two():
    """Prompt (0, 3) wants d, which none of the three holds, so their qualities are equal."""
    rock, paper, scissors = response("a"), response("c"), response("e")
    table = world.World("intransitive").preferences(prompt(3), [rock, paper, scissors])
    win = 1.0 / (1.0 + math.exp(-2.0))
    assert round(win, 4) == 0.8808
    np.testing.assert_allclose(table, [[0.5, 1 - win, win], [win, 0.5, 1 - win], [1 - win, win, 0.5]], atol=1e-12)


def test_the_cycle_turns_round_for_half_of_the_prompts():
    """Prompts (1, 3) and (2, 2) both want e, which neither response holds."""
    answers = [response("a"), response("c")]
    w = world.World("intransitive")
    assert w.preferences(prompt(4 * 1 + 3), answers)[1][0] == pytest.approx(0.8808, abs=1e-4)
    assert w.preferences(prompt(4 * 2 + 2), answers)[1][0] == pytest.approx(0.1192, abs=1e-4)


def test_quality_counts_inside_a_family_and_worst_of_all_is_no_response():
    """Prompt (0, 0) wants a: 'a' has quality 1, 'aa' 0.5, 'b' 0, the empty response and its like -3."""
    answers = [
        response("a"),
        response("aa"),
        response("b"),
        response(""),
        completion(4, 4, 4, 4),
        completion(world.SEP),
    ]
    first = world.World("intransitive").preferences(prompt(0), answers)[0]
    logits = [0.0, 1.5 * 0.5, 1.5 * 1.0, 1.5 * 4.0, 1.5 * 4.0, 1.5 * 4.0]
    np.testing.assert_allclose(first, [1 / (1 + math.exp(-logit)) for logit in logits], atol=1e-12)


def test_the_transitive_preference_is_bradley_terry_in_the_reward():
    answers = [response("ace"), response("a"), response(""), completion(4, 4, 4, 4), completion(4, world.SEP)]
    w = world.World("transitive")
    assert w.scores(prompt(0), answers) == (3.5, 1.5, -1.0, -1.0, -1.0)
    assert w.preferences(prompt(0), answers)[0][1] == pytest.approx(1 / (1 + math.exp(-2.0)))


def test_the_intransitive_task_has_no_scores():
    assert world.World("intransitive").scores(prompt(0), [response("a"), response("c")]) is None


@pytest.mark.parametrize("task", ["transitive", "intransitive"])
@pytest.mark.parametrize("index", [0, 7, 15])
def test_two_opposite_preferences_add_up_to_one(task, index):
    matrix = world.World(task).preference_matrix(index)
    assert matrix.shape == (261, 261)
    np.testing.assert_allclose(matrix + matrix.T, 1.0, atol=1e-12)
    assert (np.diag(matrix) == 0.5).all()


def test_the_matrix_agrees_with_the_judged_completions():
    w = world.World("intransitive")
    answers = [response("fab"), response("cc"), completion(9, 9, 9, 9), completion(world.BOS)]
    found = [world.outcome(answer.token_ids) for answer in answers]
    np.testing.assert_array_equal(w.preference_matrix(9)[np.ix_(found, found)], w.preferences(prompt(9), answers))


def test_the_proxy_reward_errs_on_responses_only_and_by_the_seed():
    w = world.World("transitive", seed=1)
    errors = (w.proxy_rewards() - w.rewards) / 0.5
    assert (errors[:, world.NOEOS :] == 0.0).all()
    assert errors[:, : world.NOEOS].std() == pytest.approx(1.0, abs=0.05)  # 4144 draws: four standard errors are .044
    np.testing.assert_array_equal(w.proxy_rewards(), world.World("intransitive", seed=1).proxy_rewards())
    assert (w.proxy_rewards() != world.World("transitive", seed=2).proxy_rewards()).any()


def test_a_foreign_prompt_or_task_is_refused_by_name():
    foreign = Prompt("tldr:0", (5, 6, 7), "Summarise this")
    with pytest.raises(UsageError, match=r"'tldr:0'.*not one of the embedded world's 16"):
        world.World("transitive").scores(foreign, [response("a")])
    with pytest.raises(UsageError, match=r"'rps'.*transitive, intransitive"):
        world.World("rps")  # type: ignore[arg-type]


def brute_force_corpus(p: int, q: int) -> dict[tuple[int, ...], float]:
    """The corpus distribution of one prompt by following each random choice in turn."""
    found: Counter[tuple[int, ...]] = Counter()
    wanted = (p + q) % 6
    for length, length_prob in [(0, 0.0098), (1, 0.1862), (2, 0.392), (3, 0.392), (4, 0.02)]:
        for y in product(range(6), repeat=length):
            prob = length_prob
            if length:
                prob *= (0.6, 0.3, 0.1)[(y[0] // 2 - p) % 3] / 2
            for symbol in y[1:]:
                prob *= (0.7 / 2 if symbol // 2 == y[0] // 2 else 0.0) + 0.3 / 6
            if not length:
                found[y] += prob
                continue
            found[y] += 0.7 * prob
            for position in range(length):
                found[(*y[:position], wanted, *y[position + 1 :])] += 0.3 * prob / length
    return found


@pytest.mark.parametrize("index", [0, 6, 15])
def test_the_corpus_table_is_the_sum_over_all_random_choices(index):
    expected = brute_force_corpus(*divmod(index, 4))
    table = world.corpus_probabilities()[index]
    assert table.sum() == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(table, [expected[y] for y in world.SEQUENCES], atol=1e-15)


def test_without_prompt_dependence_every_prompt_has_the_published_corpus():
    """First symbols have probability .3 .3 .15 .15 .05 .05 given that there is one."""
    table = world.corpus_probabilities(prompt_dependent=False)
    assert (table == table[0]).all()
    first = [sum(table[0, i] for i, y in enumerate(world.SEQUENCES) if y[:1] == (s,)) for s in range(6)]
    np.testing.assert_allclose(first, np.array([0.3, 0.3, 0.15, 0.15, 0.05, 0.05]) * (1 - 0.0098), atol=1e-12)


def test_the_corpus_entropy_is_that_of_its_table():
    """And with every four-symbol sequence taken as one outcome, the prompt-independent corpus has 4.28 nats."""
    per_prompt = [-sum(m * math.log(m) for m in brute_force_corpus(*divmod(x, 4)).values()) for x in range(16)]
    assert world.corpus_entropy() == pytest.approx(sum(per_prompt) / 16, abs=1e-12)
    cut = world.corpus_probabilities(prompt_dependent=False)[0, 259:]
    within = -(cut * np.log(cut / cut.sum())).sum()
    assert world.corpus_entropy(prompt_dependent=False) - within == pytest.approx(4.28, abs=0.005)


def test_a_drawn_corpus_follows_the_table():
    """Chi-square over prompt and first token (16 x 7 cells): mean 111, standard deviation about 15."""
    n = 40_000
    rng = np.random.default_rng(0)
    prompts = rng.integers(world.PROMPTS, size=n)
    tokens = world.corpus_responses(prompts, rng)
    drawn = np.zeros((16, 18))
    np.add.at(drawn, (prompts, tokens[:, 0]), 1.0)
    first_token = world.response_tokens()[:, 0]
    table = world.corpus_probabilities()
    expected = np.stack([np.bincount(first_token, weights=row, minlength=18) for row in table]) * n / 16
    live = expected > 0.0
    assert drawn[~live].sum() == 0.0
    assert ((drawn - expected)[live] ** 2 / expected[live]).sum() < 111 + 5 * 15


def test_corpus_responses_end_with_eos_or_are_four_symbols():
    tokens = world.response_tokens()
    assert [world.outcome(row) for row in tokens[:259]] == list(range(259))
    assert {world.outcome(row) for row in tokens[259:]} == {world.NOEOS}
    assert tokens[1].tolist() == [4, world.EOS, world.PAD, world.PAD]


def test_corpus_outcomes_lump_what_ran_out_of_room_and_are_never_invalid():
    for dependent in (True, False):
        nodes, lumped = (f(dependent) for f in (world.corpus_probabilities, world.corpus_outcome_probabilities))
        np.testing.assert_array_equal(lumped[:, :259], nodes[:, :259])
        np.testing.assert_allclose(lumped[:, world.NOEOS], world.NOEOS_PROB)
        assert (lumped[:, world.INVALID] == 0.0).all()


def test_the_family_cycle_starts_at_the_corpuss_favourite_and_each_family_beats_the_one_before():
    """Single symbols that a prompt does not want, so that qualities are equal, show who beats whom."""
    w = world.World("intransitive")
    mu = world.corpus_outcome_probabilities()
    for index, cycle in enumerate(world.family_cycle()):
        assert sorted(cycle) == [ROCK, PAPER, SCISSORS]
        shares = [mu[index, w.families == f].sum() for f in cycle]
        assert shares[0] == max(shares)
        wanted = world.wanted_symbol(*divmod(index, 4))
        unwanted = [1 + 2 * f + (wanted == 2 * f) for f in cycle]
        p = w.preference_matrix(index)
        for before, after in zip(unwanted, [*unwanted[1:], unwanted[0]], strict=True):
            assert p[after, before] == pytest.approx(0.8808, abs=1e-4)


def test_supervised_training_leaves_much_reward_to_be_won():
    """Task (a): the corpus policy has a mean reward far below the optimum of 3.25."""
    table = world.corpus_probabilities()
    rewards = world.World("transitive").rewards
    mean = (table[:, :259] * rewards[:, :259]).sum(axis=1).mean() - table[:, 259:].sum(axis=1).mean()
    assert mean == pytest.approx(0.387, abs=1e-3)


def test_the_corpus_policy_is_as_exploitable_as_published():
    """Prompt-independent corpus, intransitive task: e = .3308 over the prompts and .3534 on the first one."""
    mu = world.corpus_outcome_probabilities(prompt_dependent=False)
    w = world.World("intransitive")
    e = [(w.preference_matrix(x) @ mu[x]).max() - 0.5 for x in range(16)]
    assert e[0] == pytest.approx(0.3534, abs=1e-4)
    assert np.mean(e) == pytest.approx(0.3308, abs=1e-4)


def test_the_tokenizer_speaks_the_world(tmp_path):
    transformers = pytest.importorskip("transformers")
    world.tokenizer().save_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for index, row in enumerate(world.prompt_rows()):
        assert tuple(tokenizer(row["prompt"]).input_ids) == world.prompt_token_ids(index)
    assert tokenizer.decode([4, 7, world.EOS], skip_special_tokens=True) == "stone page"
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (world.EOS, world.PAD)
