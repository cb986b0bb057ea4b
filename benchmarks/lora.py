"""Adapters against all weights: whole runs of the embedded world, or of the chat preset, with the same seeds.

    python -m benchmarks.lora [--runs embedded embedded-nash-md] [--seeds 0 1 2] [--rank 8] [--output FILE]

Each preset is trained with all weights and with adapters of every linear layer (alpha = 2 rank), published alone, at
ten times the preset's learning rate (Schulman et al. 2025, "LoRA Without Regret"). The result holds each run's figures,
the bytes of its final model, and for each figure the difference of paired seeds with a 95% t interval. The embedded
runs start from one policy. Runs that the output already holds are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from actors.intervals import student_t
from benchmarks.record import machine, write
from learner.backend.manifest import of_model

FIGURES = {
    "embedded": ("exploitability_tail", "preference", "exact_kl"),
    "embedded-nash-md": ("exploitability_tail", "preference", "exact_kl"),
    "chat": ("reward", "win_rate", "score_mean_tail"),
}
"""Names in `summary.json` of the figures that are compared."""
RATES = {"embedded": 3e-4, "embedded-nash-md": 3e-4, "chat": 3e-5}
FASTER = 10.0


def starting_policy(directory: Path) -> Path:
    """Train the embedded world's starting policy, unless it is there."""
    from learner.world.policy import train_sft

    if not directory.exists():
        train_sft(directory, updates=300, seed=0)
    return directory


def run(preset: str, rank: int | None, seed: int, more: list[str], start: list[str]) -> dict[str, Any]:
    """Train once, in a process and a directory of its own; return its figures and sizes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        rate = RATES[preset] * (1.0 if rank is None else FASTER)
        settings = [f"seed={seed}", f"learner.seed={seed}", f"prompts.seed={seed}", f"learner.optimizer.lr={rate}"]
        settings.append("learner.anchor.weight=0")
        settings += [] if rank is None else [f"learner.lora.rank={rank}", f"learner.lora.alpha={2 * rank}"]
        command = [sys.executable, "-m", "launch", "train", preset, *settings, *start, *more, f"output={out}"]
        started = time.perf_counter()
        done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{preset}: {done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        summary = json.loads((out / "summary.json").read_text())
        rewards = [row["score_mean"] for row in map(json.loads, (out / "metrics.jsonl").open()) if "score_mean" in row]
        tail = rewards[-max(1, len(rewards) // 5) :]
        manifest = of_model(out / "final")
        return {
            "preset": preset,
            "rank": rank,
            "seed": seed,
            "settings": more,
            "learning_rate": rate,
            "seconds": time.perf_counter() - started,
            "summary": summary,
            "score_mean_tail": statistics.fmean(tail) if tail else None,
            "final_bytes": None if manifest is None else manifest.nbytes,
        }


def figure(entry: dict[str, Any], name: str) -> float:
    value = entry.get(name, entry["summary"].get(name))
    assert value is not None, f"{entry['preset']} has no {name}: {sorted(entry['summary'])}"
    return float(value["value"] if isinstance(value, dict) else value)


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half-width of its 95% t interval."""
    mean, count = statistics.fmean(values), len(values)
    spread = statistics.stdev(values) / count**0.5 if count > 1 else float("nan")
    return mean, student_t(max(1, count - 1)) * spread


def compared(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Both ways of training a preset, figure by figure, and their paired difference."""
    rows = []
    for preset in dict.fromkeys(entry["preset"] for entry in runs):
        by_seed = {(entry["rank"] is not None, entry["seed"]): entry for entry in runs if entry["preset"] == preset}
        seeds = [seed for adapted, seed in by_seed if adapted and (False, seed) in by_seed]
        for name in FIGURES[preset] if seeds else ():
            whole, adapted = ([figure(by_seed[kind, seed], name) for seed in seeds] for kind in (False, True))
            rows.append(
                {
                    "preset": preset,
                    "figure": name,
                    "seeds": len(seeds),
                    "all_weights": interval(whole),
                    "adapters": interval(adapted),
                    "difference": interval([b - a for a, b in zip(whole, adapted, strict=True)]),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", choices=list(FIGURES), default=["embedded", "embedded-nash-md"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--start", type=Path, help="starting policy of the embedded runs; unset: trained here")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", dest="more", help="settings of every run")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/lora.json"))
    arguments = parser.parse_args()
    runs = json.loads(arguments.output.read_text())["runs"] if arguments.output.is_file() else []
    with tempfile.TemporaryDirectory() as scratch:
        for preset in arguments.runs:
            start = []
            if preset != "chat":
                start = [f"model.path={arguments.start or starting_policy(Path(scratch) / 'start')}"]
            for seed in arguments.seeds:
                for rank in (None, arguments.rank):
                    key = (preset, rank, seed, arguments.more)
                    if key in [tuple(entry[name] for name in ("preset", "rank", "seed", "settings")) for entry in runs]:
                        continue
                    runs.append(run(preset, rank, seed, arguments.more, start))
                    write(arguments.output, {**machine(), "compared": compared(runs), "runs": runs})
                    shown = {name: round(figure(runs[-1], name), 4) for name in FIGURES[preset]}
                    print(f"{preset} rank {rank} seed {seed}: {shown}, {runs[-1]['seconds']:.0f} s", flush=True)
    for row in compared(runs):
        mean, half = row["difference"]
        print(
            f"{row['preset']} {row['figure']}: adapters - all weights {mean:+.4f} +- {half:.4f}, {row['seeds']} seeds"
        )


if __name__ == "__main__":
    main()
