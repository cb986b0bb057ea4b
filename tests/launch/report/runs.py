"""Directories of runs as the writers of a run leave them: configuration, metrics, journal and summary."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.files import atomic_write
from actors.records import Completion, Group, Judgement, Lease, Prompt
from actors.replay_buffer.buffer import Batch
from launch.output.journal import Journal
from launch.output.metrics import MetricsWriter
from launch.output.summary import Staleness, Summary
from launch.run.win_rate import Reward, WinRate
from launch.settings.loading import dump_config
from launch.settings.run import RunConfig

LEDGER = {
    "offered": 12,
    "leased": 13,
    "generated": 12,
    "judged": 12,
    "trained": 10,
    "returned": {"generator_died": 1},
    "dropped": {"stale": 2},
    "waiting": 0,
    "in_flight": 0,
    "buffered": 0,
}


def config_of(directory: Path, **settings: Any) -> RunConfig:
    given = {"name": "small", "updates": 4, "output": str(directory), "model": {"path": "unused"}} | settings
    return RunConfig.model_validate(given)


def summary_of(**changes: Any) -> Summary:
    values: dict[str, Any] = {
        "status": "completed",
        "updates": 4,
        "wall_seconds": 60.0,
        "max_staleness_bound": 2,
        "staleness": Staleness.of({0: 2, 1: 2, 2: 4}),
        "groups_per_second": 2.0,
        "time_budget": {
            "generator": {"generating": 30.0, "updating": 10.0, "idle": 20.0},
            "learner": {"training": 40.0, "waiting": 20.0, "evaluating": 0.0},
            "judge": {"judging": 1.5},
        },
        "ledger": LEDGER,
        "judge": "gold",
        "loss": "dpo",
        "win_rate": WinRate(0.7, 0.6, 0.8, 40),
        "kl": 1.5,
    }
    return Summary(**values | changes)


def rose(value: float, low: float | None, high: float | None) -> Reward:
    return Reward(0.5 + value, 0.5, value, low, high, 40)


def write_config(directory: Path, **settings: Any) -> RunConfig:
    directory.mkdir(parents=True, exist_ok=True)
    config = config_of(directory, **settings)
    atomic_write(directory / "config.yaml", dump_config(config))
    return config


def write_rows(directory: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Steps from 1, each with its values."""
    writer = MetricsWriter(directory)
    for number, values in enumerate(rows, 1):
        writer.write(number, values)
    writer.close()


def write_lines(directory: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Lines with times and steps of their own."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_journal(directory: Path, config: RunConfig, texts: Sequence[Sequence[str]], prompt: str = "say") -> None:
    """An update for each of `texts`, with a group of the prompts p:0, p:1, ... for each text in it."""
    journal, index = Journal(directory / "journal", config, [].append), 0
    for update, said in enumerate(texts):
        groups = []
        for number, text in enumerate(said):
            completions = (completion_of(text, update), completion_of("other", update))
            lease = Lease(index, 0, Prompt(f"p:{number}", (1, 2), prompt), 0, 0.0)
            groups.append(Group(lease, completions, Judgement((0.25, 0.75))))
            index += 1
        journal.add(Batch(update, update, tuple(groups), (0,) * len(groups)))
    journal.flush()


def completion_of(text: str, version: int) -> Completion:
    return Completion((5, 2), (-1.0, -0.5), (version, version), text, True)


def write_run(directory: Path, *, said: str = "a long answer", **summary: Any) -> Path:
    """A completed run of four updates with everything in it."""
    config = write_config(directory)
    values = [
        {"loss": 0.7 - 0.1 * n, "score_mean": 0.1 * n, "grad_norm": 1.0, "seconds": 0.001, "staleness_max": 2.0}
        for n in range(4)
    ]
    rated = {"win_rate": 0.6, "win_rate_low": 0.5, "win_rate_high": 0.7, "kl": 0.5}
    write_rows(directory, [values[0], values[1], values[2] | rated, values[3]])
    write_journal(directory, config, [["early"], ["between"], ["later"], [said]])
    summary_of(output=str(directory), **summary).write(directory / "summary.json")
    return directory


def write_long_run(directory: Path, updates: int = 300, seed: int = 0) -> Path:
    """A run on a known game with every kind of figure, and times of its own."""
    draw = random.Random(seed)
    config = write_config(directory, updates=updates, name="long")
    lines, time = [], 1_800_000_000.0
    for step in range(1, updates + 1):
        time += 0.4 + 0.3 * draw.random() + (2.0 if step % 50 == 0 else 0.0)
        done = step / updates
        line = {
            "step": step,
            "time": time,
            "seconds": 0.35,
            "loss": -0.1 * done + 0.1 * draw.gauss(0.0, 1.0),
            "score_mean": 0.5 + 0.2 * done + 0.05 * draw.gauss(0.0, 1.0),
            "player_preference": 0.5 + 0.03 * draw.gauss(0.0, 1.0),
            "kl_players": 1.7 * done + 0.1 * draw.gauss(0.0, 1.0),
            "grad_norm": math.exp(draw.gauss(0.0, 0.4)),
            "completion_tokens_mean": 12.0 + draw.gauss(0.0, 1.0),
            "staleness_max": 2.0,
        }
        if step % 10 == 0:
            turn = 6.0 * done
            shares = [1 + math.sin(turn), 1 + math.sin(turn + 2.1), 1 + math.sin(turn + 4.2)]
            line |= {"exploitability": 0.3 - 0.17 * done + 0.01 * draw.random(), "exact_kl": 1.8 * done}
            line |= {f"family_{n}": share / sum(shares) for n, share in enumerate(shares)}
        if step % 50 == 0:
            rate = 0.5 + 0.16 * done
            line |= {"win_rate": rate, "win_rate_low": rate - 0.03, "win_rate_high": rate + 0.03, "kl": 1.75 * done}
        lines.append(line)
    write_lines(directory, lines)
    write_journal(directory, config, [["An early answer, cut", "wide"], ["A late answer", "narrow"]], "Say something.")
    told = summary_of(
        updates=updates,
        loss="nash_pg",
        win_rate=WinRate(0.663, 0.643, 0.681, 16),
        exploitability=0.137,
        exploitability_tail=0.137,
        exact_kl=1.8,
        kl=1.71,
        wall_seconds=158.0,
        opponent="the SFT policy",
    )
    told.write(directory / "summary.json")
    return directory
