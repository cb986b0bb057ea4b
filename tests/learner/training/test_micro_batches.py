"""What a rank computes of a batch: pairs and games stay whole, ties are left out, and the cheapest item fills in."""

from actors.records import Completion, Game, Pair
from learner.config import LearnerConfig
from learner.losses.config import GameLossConfig, PairLossConfig, RewardLossConfig
from learner.training.game_objective import GameObjective
from learner.training.pair_objective import PairObjective


def completion(tokens):
    tokens = tuple(tokens)
    return Completion(tokens, tuple(-0.1 * token for token in tokens), (0,) * len(tokens), "", True)


def pair(index, prompt, chosen, rejected, margin=1.0):
    """A pair of the given lengths whose tokens are all `index`."""
    return Pair(index, (index,) * prompt, completion([index] * chosen), completion([index] * rejected), margin)


def game(index, prompt, *responses):
    """A game of two players and the opponents that remain, of the given lengths, whose tokens are all `index`."""
    completions = tuple(completion([index] * length) for length in responses)
    n = len(completions)
    return Game(index, (index,) * prompt, completions[:2], completions[2:], ((0.5,) * n,) * n, (0.0,) * n)


def players(index, prompt, *responses):
    """A game of players alone, of the given lengths, whose tokens are all `index`."""
    completions = tuple(completion([index] * length) for length in responses)
    n = len(completions)
    return Game(index, (index,) * prompt, completions, (), ((0.5,) * n,) * n, (0.0,) * n)


def pairs_of(tokens):
    return PairObjective(LearnerConfig(micro_batch_tokens=tokens, loss=PairLossConfig()))


def games_of(tokens, **loss):
    return GameObjective(LearnerConfig(micro_batch_tokens=tokens, loss=GameLossConfig(**loss)))


def test_ties_are_not_computed():
    pairs = [pair(1, 2, 3, 4), pair(2, 2, 3, 3, margin=0.0), pair(3, 2, 1, 1)]
    assert pairs_of(1000).micro_batches(pairs, 0, 1) == [[pairs[0], pairs[2]]]


def test_a_batch_of_ties_alone_still_gives_every_rank_one_empty_micro_batch():
    ties = [pair(1, 2, 3, 3, margin=0.0)]
    assert [pairs_of(100).micro_batches(ties, rank, 2) for rank in range(2)] == [[[]], [[]]]


def test_with_shared_prompts_a_game_counts_each_token_of_its_largest_pass_once():
    """By hand: players 3 + (1 + 2), opponents 3 + (4): 7 tokens, of which two fit into 14."""
    config = LearnerConfig(micro_batch_tokens=14, loss=GameLossConfig())
    objective = GameObjective(config, shares_prompts=True)
    games = [game(index, 3, 1, 2, 4) for index in range(3)]
    assert objective.tokens(games[0]) == 7
    assert [sorted(each.lease_index for each in own) for own in objective.micro_batches(games, 0, 1)] == [[0, 2], [1]]


def test_with_shared_prompts_a_pair_counts_its_prompt_once():
    objective = PairObjective(LearnerConfig(micro_batch_tokens=20, loss=PairLossConfig()), shares_prompts=True)
    pairs = [pair(1, 5, 3, 4), pair(2, 4, 2, 2), pair(3, 1, 1, 1)]
    assert [objective.tokens(each) for each in pairs] == [12, 8, 3]
    assert objective.micro_batches(pairs, 0, 1) == [[pairs[0]], [pairs[1], pairs[2]]]


def test_the_filler_is_the_shortest_pair():
    pairs = [pair(1, 5, 3, 4), pair(2, 2, 6, 1), pair(3, 1, 1, 5)]
    assert pairs_of(100).filler(pairs) == [pairs[2]]


def test_a_game_s_completions_stay_together_and_all_count_towards_the_budget():
    """Three sequences each: of length 5 (15 padded tokens) one game fits into 29, of length 3 three."""
    games = [players(1, 1, 2, 1, 2), players(2, 2, 3, 1, 1), players(3, 1, 1, 1, 2), players(4, 1, 1, 2, 1)]

    def shares(tokens, rank, ranks, games=games):
        objective = GameObjective(LearnerConfig(micro_batch_tokens=tokens, loss=RewardLossConfig()))
        return objective.micro_batches(games, rank, ranks)

    assert shares(29, 0, 1) == [[games[1]], [games[0], games[2], games[3]]]
    assert [shares(1, rank, 2) for rank in range(2)] == [[[games[1]], [games[2]]], [[games[0]], [games[3]]]]
    assert shares(1, 1, 2, games[:1]) == [[]]


def test_the_largest_of_a_game_s_passes_counts_towards_the_budget_and_what_is_in_none_does_not():
    """Two rows of 5, 3, 3 and 2 tokens, or 3 where the third game's opponent goes through a model too."""
    games = [game(1, 1, 2, 1, 2), game(2, 2, 3, 1, 1), game(3, 1, 1, 1, 2), game(4, 1, 1, 2, 1)]
    first, second, third, fourth = games
    unweighted = games_of(12, correction={"opponents": "none"})
    assert unweighted.micro_batches(games, 0, 1) == [[second], [first, fourth], [third]]
    assert games_of(12).micro_batches(games, 0, 1) == [[second], [first, third], [fourth]]
