"""Preference models of the embedded world's intransitive task: how near they come to the preference that made the data.

    python -m benchmarks.preference [KIND ...] [--seeds 0 1] [--output benchmarks/results/preference.json]

Each row is a run of `offbeat preference embedded` of one kind and seed, on one learner rank. The gold preference is
known, so errors are of probabilities themselves. Results are added to the file row by row; `--table` prints the file's
rows as Markdown and trains nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record

KINDS = ("pairwise", "skew", "bradley_terry")
PAIRS_OF_FAMILIES = 128
"""Pairs of responses that stand for a pair of families at a prompt."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings on top of every row")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/preference.json"))
    parser.add_argument("--work", type=Path, help="directory of starting policies and runs; unset: a temporary one")
    parser.add_argument("--table", action="store_true", help="print the rows of --output, and stop")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(arguments.output.read_text())["runs"]))
        return
    unknown = [kind for kind in arguments.kinds if kind not in KINDS]
    if unknown:
        parser.error(f"no kind {unknown[0]!r}; the kinds are {', '.join(KINDS)}")
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        for seed in arguments.seeds:
            start = _start(work / f"start-{seed}", seed)
            for kind in arguments.kinds or KINDS:
                entry = _run(kind, seed, start, work, arguments.set)
                _add(arguments.output, entry)
                print(table([entry]), flush=True)


def _start(directory: Path, seed: int) -> Path:
    from learner.world.policy import train_sft

    train_sft(directory, updates=300, seed=seed)
    return directory


def _run(kind: str, seed: int, start: Path, work: Path, extra: list[str]) -> dict[str, Any]:
    output = work / f"{kind}-{seed}"
    settings = [f"model.path={start}", f"preference.kind={kind}", f"data.world.seed={seed}"]
    settings += [f"training.seed={seed}", f"learner.seed={seed}", *extra]
    command = [sys.executable, "-m", "launch", "preference", "embedded", *settings, "--output", str(output)]
    started = time.monotonic()
    subprocess.run(command, check=True)
    seconds = time.monotonic() - started
    summary = json.loads((output / "summary.json").read_text())
    card = summary["model_card"]
    del card["base_model"]
    return {
        "kind": kind,
        "seed": seed,
        "settings": extra,
        "updates": summary["updates"],
        "best_update": summary["best_update"],
        "wall_seconds": seconds,
        "card": card,
        **errors(output / "final", output / "data" / "validation.parquet"),
    }


def errors(directory: Path, held_out: Path) -> dict[str, Any]:
    """|P - gold| of a model: over held-out pairs, and of the families' game, averaged under the corpus.

    `cycle` has the three probabilities round the cycle (what beats the corpus's favourite over it, what beats that over
    it, the favourite over that), mean over prompts, of model and gold; `families` the errors at each single prompt.
    """
    from actors.judges.models.preference_network import PreferenceModel, probabilities
    from learner.tensors.examples import read_pairs

    model = PreferenceModel.load(directory)
    pairs = read_pairs(held_out)
    tables = model.tables([pair.prompt for pair in pairs], [(pair.chosen, pair.rejected) for pair in pairs])
    found = np.array([probabilities(each)[0, 1] for each in tables])
    wrong = np.abs(found - [pair.probability for pair in pairs])
    ours, gold = _family_game(model)
    by_prompt = np.abs(ours - gold)
    return {
        "outcomes": {"mean": float(wrong.mean()), "largest": float(wrong.max())},
        "cycle": {"model": ours.mean(axis=0).tolist(), "gold": gold.mean(axis=0).tolist()},
        "families": {"mean": float(by_prompt.mean()), "largest": float(by_prompt.max())},
    }


def _family_game(model: Any) -> tuple[np.ndarray, np.ndarray]:
    """P of each family of a prompt's cycle over the one before it, [16, 3], of the model and gold, on the same pairs.

    Responses of a family are drawn as the corpus has them.
    """
    from actors import world
    from actors.judges.models.preference_network import probabilities

    rng = np.random.default_rng(0)
    gold_world, corpus = world.World("intransitive"), world.corpus_outcome_probabilities()
    cycle, of = world.family_cycle(), world.outcome_families()
    ours, gold = np.zeros((world.PROMPTS, 3)), np.zeros((world.PROMPTS, 3))
    for x in range(world.PROMPTS):
        matrix = gold_world.preference_matrix(x)
        drawn = []
        for family in cycle[x]:
            share = np.where(of == family, corpus[x], 0.0)
            drawn.append(rng.choice(world.OUTCOMES, size=(2, PAIRS_OF_FAMILIES), p=share / share.sum()))
        for step in range(3):
            winners, losers = drawn[(step + 1) % 3][0], drawn[step][1]
            pairs = [tuple(map(_tokens, pair)) for pair in zip(winners.tolist(), losers.tolist(), strict=True)]
            tables = model.tables([world.prompt_token_ids(x)] * len(pairs), pairs)
            ours[x, step] = np.mean([probabilities(each)[0, 1] for each in tables])
            gold[x, step] = matrix[winners, losers].mean()
    return ours, gold


def _tokens(outcome: int) -> tuple[int, ...]:
    from actors import world

    return tuple(token for token in world.response_tokens()[outcome].tolist() if token != world.PAD)


def table(runs: list[dict[str, Any]]) -> str:
    """Rows as Markdown."""
    lines = [
        "| kind | seed | NLL | least | accuracy | ECE | cycle, largest error | families, mean and largest | outcome "
        "pairs, mean and largest | curl | cyclic triples | updates |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run in sorted(runs, key=lambda run: (KINDS.index(run["kind"]), run["seed"])):
        card, cycle = run["card"], run["cycle"]
        worst = max(abs(a - b) for a, b in zip(cycle["model"], cycle["gold"], strict=True))
        errors_of = [f"{run[name]['mean']:.3f}, {run[name]['largest']:.3f}" for name in ("families", "outcomes")]
        numbers = [f"{card[name]:.4f}" for name in ("nll", "label_entropy", "accuracy", "ece")]
        curl = [f"{card['curl']['mean_absolute']:.3f}", f"{card['curl']['cyclic_share']:.3f}"]
        cells = [run["kind"], run["seed"], *numbers, f"{worst:.3f}", *errors_of, *curl, run["updates"]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _add(path: Path, entry: dict[str, Any]) -> None:
    """Puts `entry` in the place of an older one of the same kind, seed and settings."""
    data = json.loads(path.read_text()) if path.is_file() else {"runs": []}
    key = ("kind", "seed", "settings")
    data["machine"] = record.machine()
    data["versions"] = {package: version(package) for package in ("torch", "ray", "deepspeed", "transformers")}
    data["runs"] = [run for run in data["runs"] if [run[k] for k in key] != [entry[k] for k in key]] + [entry]
    record.write(path, data)


if __name__ == "__main__":
    main()
