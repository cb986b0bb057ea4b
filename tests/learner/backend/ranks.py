"""What the learner's tests share: random pairs, a plain-torch learner to compare with, and the program of each rank.

`python -m tests.learner.backend.ranks RANK WORLD PORT DIRECTORY SCENARIO` is one rank; `run_ranks` starts them all.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from actors.host import free_port
from actors.records import Completion, Pair
from learner.config import LearnerConfig, LearnerSpec, OptimizerConfig
from learner.losses.config import Anchor, CorrectionConfig, GameLossConfig, PairLossConfig
from learner.publication.config import PublicationConfig
from learner.training.process import RankPlace
from tests.learner.backend import rank_server

VOCABULARY = 50
TOTAL_UPDATES = 6
TEMPERATURE = 0.7
OPTIMIZER = OptimizerConfig(lr=5e-3, weight_decay=0.01, warmup_updates=1, max_grad_norm=0.5)
CONFIG = LearnerConfig(
    dtype="float32", micro_batch_tokens=40, logprob_chunk=5, loss=PairLossConfig(beta=0.5), optimizer=OPTIMIZER
)


def make_model(directory: Path, **settings: Any) -> Path:
    """A random two-layer Llama of 32 dimensions, with a file that stands for its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(**{"vocab_size": VOCABULARY, "initializer_range": 0.2} | small | settings)
    LlamaForCausalLM(config).save_pretrained(directory)
    (directory / "tokenizer.json").write_text("{}")
    return directory


def full_state(engine: Any) -> dict[str, torch.Tensor]:
    """A copy of the policy's weights, in the names of its checkpoint; empty on ranks other than 0. Collective."""
    return {name: tensor.clone() for name, tensor in engine.weights() if not name.startswith("reference.")}


def average_state(engine: Any) -> dict[str, torch.Tensor]:
    """The same of the average of past policies."""
    prefix = "reference."
    named = ((name, tensor) for name, tensor in engine.weights() if name.startswith(prefix))
    return {name.removeprefix(prefix): tensor.clone() for name, tensor in named}


def random_pairs(seed: int, count: int = 7) -> list[Pair]:
    """Pairs of uneven lengths; every fourth is a tie."""
    rng = random.Random(seed)

    def tokens(longest: int) -> tuple[int, ...]:
        return tuple(rng.randrange(VOCABULARY) for _ in range(rng.randint(1, longest)))

    def completion() -> Completion:
        ids = tokens(9)
        return Completion(ids, tuple(-rng.uniform(1, 6) for _ in ids), (0,) * len(ids), "", True)

    return [Pair(i, tokens(5), completion(), completion(), float(i % 4 != 3)) for i in range(count)]


def plain_learner(
    model_dir: Path, batches: list[list[Pair]], config: LearnerConfig = CONFIG, anchor: Anchor | None = None
) -> tuple[dict, list[tuple[float, float]]]:
    """DPO without DeepSpeed, micro-batches or chunks: one sequence at a time, full logits, AdamW.

    Returns the weights, and loss and gradient norm of each update. `anchor` has a model of its own.
    """
    from transformers import AutoModelForCausalLM

    policy, reference, slow = (
        AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval() for _ in range(3)
    )
    beta, weight = config.loss.beta, 0.0 if anchor is None else anchor.weight
    settings = config.optimizer
    optimizer = torch.optim.AdamW(
        policy.parameters(), lr=1.0, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay
    )

    def logprob(model, pair, completion):
        ids = torch.tensor([*pair.prompt_token_ids, *completion.token_ids])
        logp = (model(input_ids=ids[None]).logits[0] / TEMPERATURE).log_softmax(-1)
        return sum(logp[t - 1, ids[t]] for t in range(len(pair.prompt_token_ids), len(ids)))

    history = []
    for update, pairs in enumerate(batches):
        loss = torch.zeros(())
        for pair in pairs:
            with torch.no_grad():
                mu = logprob(reference, pair, pair.chosen) - logprob(reference, pair, pair.rejected)
                u = logprob(slow, pair, pair.chosen) - logprob(slow, pair, pair.rejected) if weight else mu
                mu = (beta * mu + weight * u) / (beta + weight)
            h = logprob(policy, pair, pair.chosen) - logprob(policy, pair, pair.rejected) - mu
            h = h * 0.0 if pair.tie else h
            loss = loss - torch.nn.functional.logsigmoid((beta + weight) * h) / len(pairs)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), settings.max_grad_norm)
        # Warm-up of one update at half the peak, then linear to the zero that update 6 would have.
        optimizer.param_groups[0]["lr"] = settings.lr * (0.5 if update == 0 else (TOTAL_UPDATES - update) / 5)
        optimizer.step()
        if anchor is not None:
            with torch.no_grad():
                for own, moved in zip(slow.parameters(), policy.parameters(), strict=True):
                    own.add_((moved - own) / anchor.horizon)
        history.append((float(loss.detach()), float(norm)))
    return {name: tensor.detach() for name, tensor in policy.state_dict().items()}, history


def run_ranks(directory: Path, scenario: str, world: int = 2, program: str = __name__) -> list[int]:
    """Runs `scenario` of `program` on all ranks and returns their exit codes; what they print goes to `directory`."""
    port = free_port("127.0.0.1")
    # Nothing of a distributed launcher that this very process might run under.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    arguments = [[str(rank), str(world), str(port), str(directory), scenario] for rank in range(world)]
    logs = [directory / f"{scenario}-rank{rank}.log" for rank in range(world)]
    return rank_server.run(program, arguments, logs, environment | {"OMP_NUM_THREADS": "1"})


def place_of(rank: int = 0, world: int = 1, port: int | None = None) -> RankPlace:
    return RankPlace(rank, world, "127.0.0.1", port or free_port("127.0.0.1"))


def spec_of(model: Path, config: LearnerConfig, **settings: Any) -> LearnerSpec:
    common = {"total_updates": TOTAL_UPDATES, "temperature": TEMPERATURE}
    return LearnerSpec(config=config, model_dir=str(model), **{**common, **settings})


def _join(rank: int, world: int, port: int) -> None:
    from learner.training.process import set_environment

    set_environment(CONFIG, place_of(rank, world, port))


def _worker(rank: int, world: int, port: int, directory: Path, config: LearnerConfig):
    from learner.training.worker import LearnerWorker

    spec = spec_of(directory / "model", config, failed_batches_dir=str(directory / "failed"))
    publication = PublicationConfig(transport="object_store")
    return LearnerWorker(spec, place_of(rank, world, port), publication, str(directory / "publish"))


def _train(rank: int, world: int, port: int, directory: Path) -> None:
    """Every ZeRO stage on the same batches; a loss that is no number on rank 1; a checkpoint and what follows it."""
    _join(rank, world, port)
    from learner.training.engine import TrainEngine

    batches = [random_pairs(seed) for seed in range(3)]
    sequences = [(pair.prompt_token_ids, pair.chosen.token_ids) for pair in batches[0][:3]]
    results = {}
    for stage in (0, 1, 2, 3):
        config = CONFIG.model_copy(update={"zero_stage": stage, "gradient_checkpointing": stage in (2, 3)})
        model = directory / ("tied" if stage == 3 else "model")
        engine = TrainEngine(spec_of(model, config, failed_batches_dir=str(directory / "failed")))
        result = {"score": engine.policies.score(sequences), "updates": [engine.update(batch) for batch in batches]}
        result["state"] = full_state(engine)
        result["answer"] = engine.own_answer()

        policies, whole = engine.policies, engine.policies.reference
        policies.reference = lambda *inputs, whole=whole: whole(*inputs) * (float("nan") if rank == 1 else 1.0)
        result["skipped"] = engine.update(batches[0])
        policies.reference = whole
        result["state after skip"] = full_state(engine)

        engine.policy.save(directory / f"stage{stage}", {"note": stage})
        result["went on"] = engine.update(batches[1])
        result["state that went on"] = full_state(engine)
        engine.policy.destroy()
        resumed = TrainEngine(spec_of(model, config))
        result["client state"] = resumed.policy.load(directory / f"stage{stage}")
        result["resumed"] = resumed.update(batches[1])
        result["resumed state"] = full_state(resumed)
        resumed.policy.destroy()
        results[stage] = result
    if rank == 0:
        torch.save(results, directory / "results.pt")


ANCHOR = Anchor(weight=0.7, horizon=3)


def _anchored(rank: int, world: int, port: int, directory: Path) -> None:
    """Every ZeRO stage with an anchor: three updates, a checkpoint, and what follows it."""
    _join(rank, world, port)
    from learner.training.engine import TrainEngine

    batches, results = [random_pairs(seed) for seed in range(3)], {}
    for stage in (0, 1, 2, 3):
        config = CONFIG.model_copy(update={"zero_stage": stage, "gradient_checkpointing": stage in (2, 3)})
        model = directory / ("tied" if stage == 3 else "model")
        engine = TrainEngine(spec_of(model, config, anchor=ANCHOR))
        result = {"updates": [engine.update(batch) for batch in batches], "state": full_state(engine)}
        result["average"] = {name: each.clone() for name, each in engine.policies.anchor.average.whole().items()}
        engine.policy.save(directory / f"anchored{stage}", {})
        result["went on"] = engine.update(batches[1])
        result["state that went on"] = full_state(engine)
        engine.policy.destroy()
        resumed = TrainEngine(spec_of(model, config, anchor=ANCHOR))
        resumed.policy.load(directory / f"anchored{stage}")
        result["resumed"], result["resumed state"] = resumed.update(batches[1]), full_state(resumed)
        resumed.policy.destroy()
        results[stage] = result
    if rank == 0:
        torch.save(results, directory / "anchored.pt")


def _once(rank: int, world: int, port: int, directory: Path) -> None:
    """Rank 1 has configurations alone. Every ZeRO stage scores and trains; a model without weights is refused."""
    from actors.errors import UsageError

    _join(rank, world, port)
    from learner.training.engine import TrainEngine

    results: dict[Any, Any] = {}
    for stage in (0, 1, 2, 3):
        model = directory / ("tied" if stage == 3 else "model")
        config = CONFIG.model_copy(update={"zero_stage": stage})
        own = model if rank == 0 else model.with_name(f"{model.name}-bare")
        engine = TrainEngine(spec_of(own, config, tokenizer_dir=str(directory / "model")))
        score = engine.policies.score(random_sequences(0, 3))
        results[stage] = {"score": score, "update": engine.update(random_pairs(0)), "state": full_state(engine)}
        engine.policy.destroy()
    try:
        TrainEngine(spec_of(directory / "model-bare", CONFIG))
    except UsageError as error:
        results["refused"] = str(error)
    torch.save(results, directory / f"once{rank}.pt")


GAME_SHAPES = {"weighted": (4, 0), "mixture": (3, 2), "ema": (3, 2)}
"""Players and opponents of a game, by the opponents' kind."""
GAME_STAGE = {"weighted": 1, "mixture": 3, "ema": 1}
"""And the ZeRO stage."""


def train_on_games(directory: Path, kind: str) -> dict[str, Any]:
    """Two updates on games with opponents of `kind`, on the embedded world's vocabulary, and all that came of them."""
    from actors.generation.config import OpponentConfig
    from learner.training.engine import TrainEngine
    from tests.learner.losses.games import random_games

    opponent = OpponentConfig(kind=kind, beta=0.3, ema_decay=0.75)
    config = CONFIG.model_copy(
        update={
            "zero_stage": GAME_STAGE[kind],
            "loss": GameLossConfig(tau=0.1, correction=CorrectionConfig(opponents="token"), opponent=opponent),
            # With Adam's usual epsilon rounding decides where a weight goes whose gradient is next to nothing.
            "optimizer": OPTIMIZER.model_copy(update={"eps": 1e-4}),
        }
    )
    engine = TrainEngine(spec_of(directory / "world", config))
    states, stats = [full_state(engine)], []
    for seed in range(2):
        # Three games: one of two ranks has nothing to do in the last round.
        games = random_games(seed, 3, *GAME_SHAPES[kind], vocabulary=18)
        stats.append(engine.update(games, measure_step=True))
        states.append(full_state(engine))
    result = {"stats": stats, "states": states, "average": average_state(engine)}
    engine.policy.destroy()
    return result


def _reduced(rank: int, world: int, port: int, directory: Path) -> None:
    """One update in bfloat16 at every ZeRO stage, with gradients that ranks add in float32 and in bfloat16."""
    _join(rank, world, port)
    from learner.training.engine import TrainEngine

    results = {}
    for stage in (1, 2, 3):
        for dtype in ("float32", "bfloat16"):
            config = CONFIG.model_copy(update={"dtype": "bfloat16", "zero_stage": stage, "reduce_dtype": dtype})
            engine = TrainEngine(spec_of(directory / "model", config))
            reached = str(engine.policy._engine.communication_data_type)
            results[stage, dtype] = {"update": engine.update(random_pairs(0)), "reached": reached}
            results[stage, dtype]["state"] = full_state(engine)
            engine.policy.destroy()
    if rank == 0:
        torch.save(results, directory / "reduced.pt")


def _games(rank: int, world: int, port: int, directory: Path) -> None:
    _join(rank, world, port)
    results = {kind: train_on_games(directory, kind) for kind in GAME_SHAPES}
    if rank == 0:
        torch.save(results, directory / "games.pt")


def random_sequences(seed: int, count: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Prompts and responses of uneven lengths, together up to 14 tokens."""
    return [(pair.prompt_token_ids, pair.chosen.token_ids) for pair in random_pairs(seed, count)]


def supervised_config(zero_stage: int, **learner: Any) -> Any:
    """Fine-tuning in float32 with everything in play that two ranks could differ in."""
    from learner.stages.config import SftConfig

    learner = {
        "dtype": "float32", "zero_stage": zero_stage, "micro_batch_tokens": 30, "logprob_chunk": 5,
        "optimizer": OPTIMIZER.model_copy(update={"eps": 1e-4}),
    } | learner  # fmt: skip
    return SftConfig.model_validate(
        {
            "model": {"path": "unused"},
            "data": {"source": "unused"},
            "training": {"batch_size": 5},
            "learner": learner,
        }
    )


def make_supervised(directory: Path, zero_stage: int, **learner: Any) -> Any:
    """A trainer of `directory`/model on twelve sequences, seven held out, on the ranks of the process group."""
    from learner.backend.sharded import ShardedModel, join_process_group
    from learner.stages.sft import make_stage
    from learner.stages.stage import StageTrainer
    from learner.tensors.examples import TRAIN, VALIDATION, write_sequences

    config = supervised_config(zero_stage, **learner)
    data = directory / f"sft-{os.getpid()}"
    write_sequences(data / TRAIN, random_sequences(4, 12))
    write_sequences(data / VALIDATION, random_sequences(5, 7))
    device = join_process_group(config.learner)
    stage = make_stage(config, directory / "model", data)
    policy = ShardedModel(
        stage.module, config.learner, TOTAL_UPDATES, device, directory / "model", directory / "failed"
    )
    return StageTrainer(stage, policy, batch_size=5, seed=3)


SUPERVISED: dict[int, dict[str, bool]] = {1: {}, 2: {"share_prompts": False}, 3: {"packing": False}}
"""ZeRO stages, and how sequences stand in rows: all in one, several to a row, each in its own."""


def train_supervised(directory: Path, zero_stage: int, **learner: Any) -> dict[str, Any]:
    """Five updates, over the border between two epochs, and all that came of them."""
    trainer = make_supervised(directory, zero_stage, **learner)
    result = {"held out": [trainer.evaluate()], "stats": trainer.advance(5), "state": trainer.policy.gather_state()}
    result["held out"].append(trainer.evaluate())
    trainer.policy.destroy()
    return result


def _supervised(rank: int, world: int, port: int, directory: Path) -> None:
    _join(rank, world, port)
    results = {stage: train_supervised(directory, stage, **rows) for stage, rows in SUPERVISED.items()}
    if rank == 0:
        torch.save(results, directory / "supervised.pt")


def offline_pairs(seed: int, count: int) -> list[Any]:
    """Preferences of uneven lengths; probabilities 1, 0.5, 0.8, 0 and 0.3 in turn."""
    from learner.tensors.examples import TokenPair

    probabilities = (1.0, 0.5, 0.8, 0.0, 0.3)
    return [
        TokenPair(pair.prompt_token_ids, pair.chosen.token_ids, pair.rejected.token_ids, probabilities[i % 5])
        for i, pair in enumerate(random_pairs(seed, count))
    ]


def train_offline(directory: Path, zero_stage: int, **settings: Any) -> dict[str, Any]:
    """Three updates of offline DPO on soft labels against another reference, and all that came of them."""
    from learner.backend.sharded import ShardedModel, join_process_group
    from learner.stages.config import DpoConfig
    from learner.stages.dpo import make_stage
    from learner.stages.stage import StageTrainer
    from learner.tensors.examples import TRAIN, VALIDATION, write_pairs

    learner = {
        "dtype": "float32", "zero_stage": zero_stage, "micro_batch_tokens": 40, "loss": {"beta": 0.3},
        "optimizer": OPTIMIZER.model_copy(update={"eps": 1e-4}), **settings,
    }  # fmt: skip
    config = DpoConfig.model_validate(
        {
            "model": {"path": str(directory / "model")},
            "reference": str(directory / "reference"),
            "data": {"source": "unused.jsonl"},
            "learner": learner,
        }
    )
    data = directory / f"data-{os.getpid()}-{zero_stage}"
    for name in (TRAIN, VALIDATION):
        write_pairs(data / name, offline_pairs(4, 7))
    device = join_process_group(config.learner)
    stage = make_stage(config, directory / "model", data)
    policy = ShardedModel(stage.module, config.learner, TOTAL_UPDATES, device, directory / "model")
    trainer = StageTrainer(stage, policy, batch_size=5, seed=0)
    result = {"examples": stage.train, "start": policy.gather_state(), "held out at start": trainer.evaluate()}
    result |= {"stats": trainer.advance(3), "held out": trainer.evaluate(), "state": policy.gather_state()}
    policy.destroy()
    return result


def _offline(rank: int, world: int, port: int, directory: Path) -> None:
    _join(rank, world, port)
    results = {stage: train_offline(directory, stage) for stage in (1, 3)}
    if rank == 0:
        torch.save(results, directory / "offline.pt")


def _crash(rank: int, world: int, port: int, directory: Path) -> None:
    """A refused write on rank 1, a good checkpoint, and a kill of rank 1 while it writes the next one."""
    from actors.errors import RunError
    from learner.backend import checkpoints

    config = CONFIG.model_copy(update={"zero_stage": 2})
    worker = _worker(rank, world, port, directory, config)
    root = directory / "checkpoints"
    worker.update(random_pairs(0))
    real_save = torch.save

    # Messages between ranks are made by the same function; only files are to fail.
    def refuse(state, target, **options):
        if isinstance(target, str):
            raise OSError(28, "No space left on device")
        real_save(state, target, **options)

    def die(state, target, **options):
        if isinstance(target, str):
            Path(target).write_bytes(b"half a shard")
            os.kill(os.getpid(), signal.SIGKILL)
        real_save(state, target, **options)

    if rank == 1:
        torch.save = refuse
    try:
        worker.save(str(directory / "refused"))
        message = "no error"
    except RunError as error:
        message = str(error)
    (directory / f"message{rank}").write_text(message)
    torch.save = real_save

    if rank == 0:
        stage = checkpoints.begin(root, "update-1")
    torch.distributed.barrier()
    worker.save(str(root / ".tmp-update-1"), {"cursor": 17})
    state = full_state(worker._engine)
    if rank == 0:
        checkpoints.write_state(stage, {"updates": 1})
        checkpoints.commit(root, "update-1", keep=2)
        checkpoints.begin(root, "update-2")
        torch.save(state, directory / "whole.pt")
    worker.update(random_pairs(1))
    if rank == 1:
        torch.save = die
    worker.save(str(root / ".tmp-update-2"))


def _recover(rank: int, world: int, port: int, directory: Path) -> None:
    """New ranks take over the last good checkpoint and publish it."""
    from learner.backend import checkpoints

    worker = _worker(rank, world, port, directory, CONFIG.model_copy(update={"zero_stage": 2}))
    client_state = worker.load(str(checkpoints.latest(directory / "checkpoints")))
    manifest = worker.export(1)
    worker.save_pretrained(str(directory / "final"))
    if rank == 0:
        chunks = [worker.chunk(index) for index in range(worker.chunk_count())]
        torch.save({"client": client_state, "manifest": manifest, "chunks": chunks}, directory / "recovered.pt")
    worker.close()


if __name__ == "__main__":
    torch.set_num_threads(1)
    scenarios = {
        "train": _train, "anchored": _anchored, "once": _once, "games": _games, "reduced": _reduced,
        "offline": _offline, "supervised": _supervised, "crash": _crash, "recover": _recover,
    }  # fmt: skip
    scenarios[sys.argv[5]](*(int(argument) for argument in sys.argv[1:4]), Path(sys.argv[4]))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # the first rank's end takes the others' meeting point away
        torch.distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # gloo's threads may abort a process that ends in the usual way
