"""Game updates against a slow computation in float64, alike on one and two ranks; and what each objective refuses."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.errors import UsageError
from actors.generation.config import OpponentConfig
from actors.records import Pair
from learner.losses.config import Anchor, CorrectionConfig, PairLossConfig
from learner.tensors import batching
from learner.tensors.batching import collate
from learner.training.game_objective import GameObjective, game_batch
from learner.training.objectives import objective_of
from learner.training.pair_objective import PairObjective
from learner.training.policies import Pass, Policies, TokenLogProbs
from tests.learner.backend.ranks import (
    CONFIG,
    GAME_SHAPES,
    TEMPERATURE,
    VOCABULARY,
    make_model,
    random_pairs,
    run_ranks,
    spec_of,
    train_on_games,
)
from tests.learner.losses.games import (
    chosen,
    conversed,
    loss_of,
    mixed,
    of_model,
    random_games,
    sampled_near,
    slow_game,
)


def perturbed(directory, source, seed):
    """Another model near `source`: the policy after some training, say."""
    model = AutoModelForCausalLM.from_pretrained(source)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("games")
    make_model(path / "model")
    make_model(path / "world", vocab_size=18)
    perturbed(path / "policy", path / "model", 1)
    perturbed(path / "average", path / "model", 2)
    return path


@pytest.fixture(scope="module")
def engine(directory, environment):
    """A policy that has moved from its reference; its step is replaced, so that every test meets the same weights."""
    from learner.backend.average import AveragePolicy
    from learner.training.engine import TrainEngine

    config = CONFIG.model_copy(update={"zero_stage": 0})
    engine = TrainEngine(spec_of(directory / "policy", config, reference_dir=str(directory / "model")))
    engine.own_average = AveragePolicy(engine._load(directory / "average"), 0.9)

    def step():
        engine.gradient = {name: p.grad.clone() for name, p in engine.policy.model.named_parameters()}
        engine.policy.model.zero_grad()
        return True, 1.0

    engine.policy._step = step
    yield engine
    engine.policy.close()


@pytest.fixture(scope="module")
def models(directory):
    """policy, reference and average in float64, as transformers loads them."""
    paths = {"policy": "policy", "reference": "model", "average": "average"}
    return {
        name: AutoModelForCausalLM.from_pretrained(directory / path, dtype=torch.float64).eval()
        for name, path in paths.items()
    }


def use(engine, loss, micro_batch_tokens=60, anchor=None):
    """Gives the engine other settings; its weights stay. The moving average is not to move between cases.

    With an anchor that average is the anchor too.
    """
    engine.config = engine.config.model_copy(update={"loss": loss, "micro_batch_tokens": micro_batch_tokens})
    engine._objective, engine.policies.opponent = objective_of(engine.config, anchor=anchor), loss.opponent
    engine.policies.anchor = None if anchor is None else Slow(engine.own_average.model)
    averaged = loss.opponent is not None and loss.opponent.kind == "ema"
    engine.policies.average = engine.own_average if averaged else None
    engine.own_average.update = lambda model: None


class Slow:
    """An anchor that is `model`, and does not move."""

    def __init__(self, model):
        self._model = model
        self.average = SimpleNamespace(move=lambda share: None)

    def __call__(self, batch):
        return self._model(batch)


SPLIT, DRAWN = (4, 0), (3, 2)
CASES = {
    "nash_pg split": ("nash_pg", {}, "weighted", SPLIT),
    "nash_pg drawn": ("nash_pg", {}, "mixture", DRAWN),
    "nash_pg self": ("nash_pg", {"opponents": "token"}, "self", SPLIT),
    "nash_pg reference": ("nash_pg", {"opponents": "token"}, "reference", DRAWN),
    "nash_pg average": ("nash_pg", {"opponents": "token"}, "ema", DRAWN),
    "nash_pg uncorrected": ("nash_pg", {"opponents": "none"}, "mixture", DRAWN),
    "nash_pg of the paper": ("nash_pg", {"baseline": "constant", "kl": "reward_to_go"}, "mixture", DRAWN),
    "nash_pg, weights of tokens": ("nash_pg", {"players": "token", "opponents": "token"}, "weighted", SPLIT),
    "nash_pg, masked": (
        "nash_pg", {"players": "sequence", "beyond_cap": "mask", "player_cap": 1.3, "opponent_cap": 1.3},
        "mixture", DRAWN,
    ),
    "online_ipo split": ("online_ipo", {}, "weighted", SPLIT),
    "online_ipo drawn": ("online_ipo", {"players": "sequence", "player_cap": 1.2}, "mixture", DRAWN),
    "online_ipo, weights of tokens": ("online_ipo", {"players": "token"}, "weighted", SPLIT),
    "ipo_md split": ("ipo_md", {}, "weighted", SPLIT),
    "ipo_md drawn": ("ipo_md", {"opponents": "token", "opponent_cap": 1.1}, "mixture", DRAWN),
    "rloo": ("rloo", {"players": "token"}, "weighted", SPLIT),
}  # fmt: skip


@pytest.mark.parametrize(
    ("micro_batch_tokens", "conversations"),
    [(60, False), (10_000, True), pytest.param(10_000, False, marks=pytest.mark.long)],
    ids=str,
)
@pytest.mark.parametrize("case", CASES)
def test_the_gradient_of_a_game_update_is_that_of_its_definition(
    engine, models, case, micro_batch_tokens, conversations
):
    """With 60 tokens most games are a micro-batch alone; with 10,000 all are padded together.

    In conversations the sums are over the tokens that the policy sampled.
    """
    kind, settings, opponent_kind, shape = CASES[case]
    opponent = OpponentConfig(kind=opponent_kind, beta=0.3)
    loss = loss_of(kind, CorrectionConfig(**settings), tau=0.2, opponent=opponent)
    policy, reference, average = (of_model(models[name], TEMPERATURE) for name in ("policy", "reference", "average"))
    with torch.no_grad():
        games = sampled_near(random_games(3, 4, *shape, vocabulary=VOCABULARY), reference, seed=4)
    if conversations:
        games = conversed(games, seed=5)
    use(engine, loss, micro_batch_tokens)
    stats = engine.update(games)

    opponents = {"self": policy, "reference": reference, "ema": average}
    opponent = opponents.get(opponent_kind, mixed(policy, reference, 0.3))
    slow = [slow_game(game, policy, reference, opponent, loss) for game in games]
    models["policy"].zero_grad()
    (sum(game.loss for game in slow) / len(slow)).backward()
    largest = max(float(p.grad.abs().max()) for p in models["policy"].parameters())
    for name, parameter in models["policy"].named_parameters():
        assert torch.allclose(engine.gradient[name].double(), parameter.grad, rtol=0, atol=1e-5 * largest), name
    assert stats.loss == pytest.approx(float(sum(game.loss for game in slow)) / len(slow), rel=1e-5, abs=1e-5)
    if kind == "rloo":
        assert stats.player_preference is None
    else:
        assert stats.player_preference == pytest.approx(sum(game.preference for game in slow) / len(slow), abs=1e-5)
    assert stats.kl_players == pytest.approx(sum(game.kl for game in slow) / len(slow), abs=1e-5)
    deviations = [np.std(game.advantages) for game in slow]
    assert stats.advantage_std == pytest.approx(np.mean(deviations), rel=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_of_an_anchored_game_is_that_of_its_definition(engine, models, case):
    """The loss with tau + kappa, pulled to the geometric mean of reference and slow average; KL is to the reference."""
    kind, settings, opponent_kind, shape = CASES[case]
    opponent, weight = OpponentConfig(kind=opponent_kind, beta=0.3), 0.5
    loss = loss_of(kind, CorrectionConfig(**settings), tau=0.2, opponent=opponent)
    policy, reference, average = (of_model(models[name], TEMPERATURE) for name in ("policy", "reference", "average"))
    with torch.no_grad():
        games = conversed(sampled_near(random_games(3, 4, *shape, vocabulary=VOCABULARY), reference, seed=4), seed=5)
    use(engine, loss, 60, Anchor(weight, 4))
    stats = engine.update(games)

    def prior(game, completion):
        return (0.2 * reference(game, completion) + weight * average(game, completion)) / (0.2 + weight)

    opponents = {"self": policy, "reference": reference, "ema": average}
    opponent = opponents.get(opponent_kind, mixed(policy, reference, 0.3))
    stronger = loss.model_copy(update={"tau": 0.2 + weight})
    slow = [slow_game(game, policy, prior, opponent, stronger) for game in games]
    models["policy"].zero_grad()
    (sum(game.loss for game in slow) / len(slow)).backward()
    largest = max(float(p.grad.abs().max()) for p in models["policy"].parameters())
    for name, parameter in models["policy"].named_parameters():
        assert torch.allclose(engine.gradient[name].double(), parameter.grad, rtol=0, atol=1e-5 * largest), name
    assert stats.advantage_std == pytest.approx(np.mean([np.std(game.advantages) for game in slow]), rel=1e-4)
    for found, other in ((stats.kl_players, reference), (stats.kl_anchor, average)):
        expected = [slow_game(game, policy, other, policy, loss).kl for game in games]
        assert found == pytest.approx(sum(expected) / len(expected), abs=1e-5)


def test_an_anchored_pair_s_loss_is_pulled_to_the_mean_of_reference_and_average(engine, models):
    """DPO by hand: -log sigmoid((b + k) h), h against (b log mu + k log u) / (b + k); KL to u over both answers."""
    policy, reference, average = (of_model(models[name], TEMPERATURE) for name in ("policy", "reference", "average"))
    games = random_games(8, 5, 2, 0, vocabulary=VOCABULARY)
    pairs = [Pair(g.lease_index, g.prompt_token_ids, *g.players, margin=1.0) for g in games]
    use(engine, PairLossConfig(beta=0.1), anchor=Anchor(0.4, 4))
    stats = engine.update(pairs)
    expected, apart = [], []
    with torch.no_grad():
        for game in games:
            pi, mu, u = (
                [float(chosen(each(game, player), player).sum()) for player in game.players]
                for each in (policy, reference, average)
            )
            expected.append(np.log1p(np.exp(-(0.5 * (pi[0] - pi[1]) - 0.1 * (mu[0] - mu[1]) - 0.4 * (u[0] - u[1])))))
            apart += [pi[0] - u[0], pi[1] - u[1]]
    assert stats.loss == pytest.approx(np.mean(expected), rel=1e-5)
    assert stats.kl_anchor == pytest.approx(np.mean(apart), rel=1e-4)


def test_a_pair_s_loss_and_ratios_read_the_tokens_that_the_policy_sampled_alone(engine, models):
    """DPO by hand, beta 0.1: -log sigmoid(beta (h(chosen) - h(rejected))), h = log pi - log mu of sampled tokens."""
    policy, reference = (of_model(models[name], TEMPERATURE) for name in ("policy", "reference"))
    games = conversed(random_games(8, 12, 2, 0, vocabulary=VOCABULARY), seed=9)
    pairs = [Pair(g.lease_index, g.prompt_token_ids, *g.players, margin=1.0) for g in games]
    assert sum(bool(player.given) for game in games for player in game.players) > 6
    use(engine, PairLossConfig(beta=0.1))
    stats = engine.update(pairs)

    expected, distances = [], []
    with torch.no_grad():
        for game in games:
            own = [chosen(policy(game, player), player) for player in game.players]
            frozen = [chosen(reference(game, player), player) for player in game.players]
            margin = 0.1 * float((own[0].sum() - frozen[0].sum()) - (own[1].sum() - frozen[1].sum()))
            expected.append(np.log1p(np.exp(-margin)))
            for player, logprobs in zip(game.players, own, strict=True):
                given = {t for start, end in player.given for t in range(start, end)}
                recorded = [x for t, x in enumerate(player.logprobs) if t not in given]
                distances += [abs(float(a) - b) for a, b in zip(logprobs, recorded, strict=True)]
    assert stats.loss == pytest.approx(np.mean(expected), rel=1e-5)
    assert stats.log_ratio_max == pytest.approx(max(distances), rel=1e-5)
    assert stats.log_ratio_mean == pytest.approx(np.mean(distances), rel=1e-5)
    scored = engine.policies.score(batching.sequences_of(pairs))
    assert [len(values) for values, _ in scored] == [
        len(each.token_ids) - sum(end - start for start, end in each.given)
        for each in [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    ]


def test_the_opponent_s_ratio_is_of_the_mixture_as_it_is_at_the_update(engine, models):
    """Of the opponents' tokens alone; the other ratios are of the players' tokens to the policy."""
    policy, reference = (of_model(models[name], TEMPERATURE) for name in ("policy", "reference"))
    games = random_games(5, 3, *DRAWN, vocabulary=VOCABULARY)
    use(engine, loss_of("nash_pg", opponent=OpponentConfig(kind="mixture", beta=0.4)))
    stats = engine.update(games)

    def ratios(model, side):
        with torch.no_grad():
            return [
                abs(float(model(game, completion)[t, token]) - completion.logprobs[t])
                for game in games
                for completion in getattr(game, side)
                for t, token in enumerate(completion.token_ids)
            ]

    players = ratios(policy, "players")
    assert stats.log_ratio_max == pytest.approx(max(players), rel=1e-5)
    assert stats.log_ratio_mean == pytest.approx(sum(players) / len(players), rel=1e-5)
    assert stats.opponent_log_ratio_max == pytest.approx(
        max(ratios(mixed(policy, reference, 0.4), "opponents")), rel=1e-5
    )
    # A prompt once in the pass of the players, and once in that of the opponents.
    lengths = [2 * len(g.prompt_token_ids) + sum(len(c.token_ids) for c in g.completions) for g in games]
    assert (stats.games, stats.pairs, stats.ties, stats.tokens) == (3, 0, 0, sum(lengths))


@pytest.mark.parametrize(
    ("kind", "correction", "needs", "measured"),
    [
        ("nash_pg", CorrectionConfig(), True, True),
        ("nash_pg", CorrectionConfig(opponents="none"), False, True),
        ("rloo", CorrectionConfig(), False, False),
    ],
)
def test_an_opponent_is_computed_and_measured_only_where_the_loss_reads_it(
    engine, monkeypatch, kind, correction, needs, measured
):
    use(engine, loss_of(kind, correction, opponent=OpponentConfig(beta=0.5)))
    calls, mixture = [], Policies.mixture
    monkeypatch.setattr(Policies, "mixture", lambda *inputs: calls.append(1) or mixture(*inputs))
    stats = engine.update(random_games(6, 2, *SPLIT, vocabulary=VOCABULARY))
    assert bool(calls) == needs
    assert (stats.opponent_log_ratio_max is not None) == needs
    assert (stats.opponent_ess is not None) == measured
    assert (stats.margin, stats.accuracy, stats.kl_chosen, stats.kl_rejected) == (None, None, None, None)


PLAYERS = [("reference", "", 6), ("policy", "gradient", 6)]
"""What two games of three players cost where their opponents cost nothing."""
MODELS = {
    "nash_pg uncorrected": ("nash_pg", {"opponents": "none"}, "mixture", DRAWN, PLAYERS),
    "rloo": ("rloo", {}, "mixture", DRAWN, PLAYERS),
    "nash_pg mixture": ("nash_pg", {}, "mixture", DRAWN, [("reference", "", 4), ("policy", "", 4), *PLAYERS]),
    "nash_pg self": ("nash_pg", {}, "self", DRAWN, [("policy", "", 4), *PLAYERS]),
    "nash_pg reference": ("nash_pg", {}, "reference", DRAWN, [("reference", "", 4), *PLAYERS]),
    "online_ipo average": ("online_ipo", {}, "ema", DRAWN, [("average", "", 4), *PLAYERS]),
    "ipo_md": (
        "ipo_md", {"opponents": "none"}, "mixture", DRAWN,
        [("reference", "", 6), ("policy", "", 6), ("reference", "", 4), ("policy", "gradient", 4)],
    ),
    "split": ("nash_pg", {}, "self", SPLIT, [("reference", "", 8), ("policy", "gradient", 8)]),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_completions_go_through_the_models_that_the_loss_reads_and_with_gradient_where_it_has_one(engine, case):
    """Sequences in each forward pass of an update on two games, in order; without gradient come first."""
    kind, settings, opponent_kind, shape, expected = MODELS[case]
    use(engine, loss_of(kind, CorrectionConfig(**settings), opponent=OpponentConfig(kind=opponent_kind)), 10_000)
    games = random_games(6, 2, *shape, vocabulary=VOCABULARY)
    calls, hooks = [], []
    models = {
        "policy": engine.policy._engine.module,
        "reference": engine.policies.reference,
        "average": engine.own_average.model,
    }
    for name, model in models.items():

        def note(module, inputs, name=name):
            parts = sum(len(block.distance) for block in inputs[0].layout.blocks)  # prompts and completions
            calls.append((name, "gradient" if torch.is_grad_enabled() else "", parts - len(games)))

        hooks.append(model.register_forward_pre_hook(note))
    stats = engine.update(games)
    for hook in hooks:
        hook.remove()
    assert calls == expected
    if expected == PLAYERS:
        lengths = [len(g.prompt_token_ids) + sum(len(each.token_ids) for each in g.players) for g in games]
        assert stats.tokens == sum(lengths)
        assert (stats.opponent_ess, stats.opponent_truncated) == ((1.0, 0.0) if kind == "nash_pg" else (None, None))


@pytest.mark.parametrize("kind", ["nash_pg", "online_ipo", "ipo_md"])
@pytest.mark.parametrize("shape", [DRAWN, SPLIT], ids=["drawn", "split"])
def test_renormalised_weights_are_divided_by_their_mean_over_the_batch_however_it_is_cut(engine, kind, shape):
    games, opponent = random_games(6, 4, *shape, vocabulary=VOCABULARY), OpponentConfig(beta=0.5)
    use(engine, loss_of(kind, CorrectionConfig(), opponent=opponent), 10_000)
    plain = engine.update(games)
    found = []
    for tokens in (10_000, 40):
        use(engine, loss_of(kind, CorrectionConfig(renormalise=True), opponent=opponent), tokens)
        found.append(engine.update(games))
    assert plain.opponent_weight_mean != pytest.approx(1.0, abs=0.001)
    for stats in found:
        assert stats.tokens == plain.tokens, "a completion counts once, however many passes compute it"
        assert stats.opponent_weight_mean == pytest.approx(plain.opponent_weight_mean, rel=1e-5)
        shrunk = plain.opponent_weight_mean * (stats.player_preference - 0.5)
        assert shrunk == pytest.approx(plain.player_preference - 0.5, rel=1e-4, abs=1e-6)
        assert stats.loss == pytest.approx(found[0].loss, rel=1e-4, abs=1e-5)
    if kind == "ipo_md":  # its loss is linear in the products of two weights
        assert found[0].loss * plain.opponent_weight_mean**2 == pytest.approx(plain.loss, rel=1e-4)


def test_items_of_the_wrong_kind_and_games_of_two_shapes_are_refused(engine):
    use(engine, loss_of("nash_pg"))
    with pytest.raises(UsageError, match=r"loss\.kind nash_pg consumes games, and the batch holds a Pair"):
        engine.update(random_pairs(0))
    with pytest.raises(UsageError, match="needs at least one game"):
        engine.update([])
    games = random_games(0, 1, 4, 0, VOCABULARY) + random_games(0, 1, 3, 2, VOCABULARY)
    with pytest.raises(UsageError, match=r"2 shapes \(players, opponents\): \[\(3, 2\), \(4, 0\)\]"):
        engine.update(games)
    use(engine, PairLossConfig())
    with pytest.raises(UsageError, match=r"loss\.kind dpo consumes pairs, and the batch holds a Game"):
        engine.update(games[:1])
    use(engine, PairLossConfig(kind="slic"))
    with pytest.raises(UsageError, match=r"loss\.kind slic has no step size: its pairs have no residual"):
        engine.update(random_pairs(0), measure_step=True)


def test_token_log_probs_find_their_place_in_the_padded_games():
    """Two games of two players and an opponent; each token's policy log-prob here is its number in the batch."""
    games = [
        replace(game, prompt_token_ids=(1,) * (2 - i)) for i, game in enumerate(random_games(1, 2, 2, 1, VOCABULARY))
    ]
    numbers = torch.arange(1.0, sum(len(c.token_ids) for game in games for c in game.completions) + 1.0)
    padded = game_batch(games, [Pass(slice(None))], [TokenLogProbs(numbers, -numbers)])
    count = 0.0
    for i, game in enumerate(games):
        for j, completion in enumerate(game.completions):
            length = len(completion.token_ids)
            expected = [count + t + 1.0 for t in range(length)]
            padding = [0.0] * (padded.mask.shape[-1] - length)
            assert padded.policy[i, j].tolist() == expected + padding
            assert padded.reference[i, j].tolist() == [-value for value in expected] + padding
            assert padded.behaviour[i, j].tolist() == pytest.approx([*completion.logprobs, *padding])
            assert padded.mask[i, j].tolist() == [1.0] * length + padding
            count += length
    assert padded.players == 2
    assert torch.allclose(padded.preferences[1], torch.tensor(games[1].preferences))


def test_the_recorded_log_prob_stands_in_for_what_no_pass_computed():
    """The opponents' pass gives pi' alone, the players' pi and mu; tokens are numbered within each."""
    games = random_games(1, 2, 2, 1, VOCABULARY)
    drawn, own = (
        torch.arange(1.0, 1.0 + sum(len(c.token_ids) for game in games for c in getattr(game, side)))
        for side in ("opponents", "players")
    )
    own.requires_grad_()
    logprobs = [TokenLogProbs(None, None, drawn), TokenLogProbs(own, -own.detach())]
    padded = game_batch(games, [Pass(slice(2, None)), Pass(slice(2))], logprobs)
    players, opponents = (padded.mask[:, part] > 0 for part in (slice(2), slice(2, None)))
    assert padded.policy[:, :2][players].tolist() == own.tolist()
    assert padded.reference[:, :2][players].tolist() == (-own).tolist()
    assert padded.opponent[:, 2:][opponents].tolist() == drawn.tolist()
    assert torch.equal(padded.policy[:, 2:], padded.behaviour[:, 2:])
    assert torch.equal(padded.reference[:, 2:], padded.behaviour[:, 2:])
    assert torch.equal(padded.opponent[:, :2], padded.behaviour[:, :2])
    padded.policy.sum().backward()
    assert own.grad.tolist() == [1.0] * len(own)


def passes_are_within(budget, case):
    kind, settings, _, shape = CASES[case]
    changes = {"loss": loss_of(kind, CorrectionConfig(**settings)), "micro_batch_tokens": budget}
    objective = GameObjective(CONFIG.model_copy(update=changes))
    games = random_games(2, 9, *shape, vocabulary=VOCABULARY)
    shares = [members for rank in range(2) for members in objective.micro_batches(games, rank, 2)]
    assert sorted(game.lease_index for members in shares for game in members) == list(range(9))
    for members in shares:
        for part in objective.passes(games) if len(members) > 1 else ():
            assert collate(objective.sequences(members, part)).input_ids.numel() <= budget
    return True


def test_no_pass_of_several_games_exceeds_the_budget():
    assert all(passes_are_within(budget, case) for budget in (30, 60, 120) for case in CASES)


def test_pairs_are_counted_with_their_ties_whose_loss_is_constant():
    objective = PairObjective(CONFIG.model_copy(update={"loss": PairLossConfig(kind="slic")}))
    pairs = random_pairs(0)
    means = objective.means(pairs, dict.fromkeys(("loss", *objective.sums), 0.0), {"log_ratio_max": 0.0})
    assert (means["pairs"], means["ties"]) == (7, 1)
    assert means["loss"] == 1.0 / 7


# One rank and two


@pytest.fixture(scope="module")
def one_rank(directory, environment, engine):
    """The last fixture to need the process group is the first that made it, so `engine` is among the arguments."""
    return {kind: train_on_games(directory, kind) for kind in GAME_SHAPES}


@pytest.fixture(scope="module")
def two_ranks(directory):
    codes = run_ranks(directory, "games")
    assert codes == [0, 0], (directory / "games-rank0.log").read_text()[-3000:]
    return torch.load(directory / "games.pt", weights_only=False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", GAME_SHAPES)
def test_two_ranks_reach_the_parameters_and_figures_of_one(one_rank, two_ranks, kind):
    """One rank is idle in the last round; the statistics are of all games, whoever computed them."""
    one, two = one_rank[kind], two_ranks[kind]
    for ours, theirs in zip(two["stats"], one["stats"], strict=True):
        for field in ours.__dataclass_fields__:
            if field not in ("seconds", "padded_tokens", "tokens"):  # the idle rank's stand-in is counted
                expected = getattr(theirs, field)
                near = expected if expected is None else pytest.approx(expected, rel=1e-3, abs=1e-5)
                assert getattr(ours, field) == near, field
    for name, tensor in two["states"][-1].items():
        assert torch.allclose(tensor, one["states"][-1][name], atol=1e-5), name


@pytest.mark.parametrize("kind", ["weighted", "mixture"])
def test_the_step_size_is_the_slope_of_the_policy_s_change_on_the_advantages(one_rank, directory, kind):
    """From the weights before and after each update: least squares with a constant of its own for each prompt."""
    result = one_rank[kind]
    reference = of_model(loaded(directory, result["states"][0]), TEMPERATURE)
    loss = loss_of("nash_pg", CorrectionConfig(opponents="token"), tau=0.1)
    for update, stats in enumerate(result["stats"]):
        before, after = (of_model(loaded(directory, result["states"][update + i]), TEMPERATURE) for i in range(2))
        above = below = 0.0
        for game in random_games(update, 3, *GAME_SHAPES[kind], vocabulary=18):
            with torch.no_grad():
                opponent = mixed(before, reference, 0.3)
                advantages = slow_game(game, before, reference, opponent, loss).advantages
                change = [
                    float(
                        (after(game, player) - before(game, player))[
                            range(len(player.token_ids)), player.token_ids
                        ].sum()
                    )
                    for player in game.players
                ]
            x, y = np.array(advantages) - np.mean(advantages), np.array(change) - np.mean(change)
            above, below = above + float(x @ y), below + float(x @ x)
        assert stats.step_size == pytest.approx(above / below, rel=1e-3)


def test_the_average_follows_the_policy_by_its_decay_from_the_reference_on(one_rank):
    result = one_rank["ema"]
    start, first, second = result["states"]
    for name, tensor in result["average"].items():
        by_hand = 0.75 * (0.75 * start[name] + 0.25 * first[name]) + 0.25 * second[name]
        assert torch.allclose(tensor, by_hand, atol=1e-7), name
    assert set(result["average"]) == set(second)
    assert one_rank["mixture"]["average"] == {}


def loaded(directory, state):
    model = AutoModelForCausalLM.from_pretrained(directory / "world", dtype=torch.float32).eval()
    model.load_state_dict(state)
    return model.double()
