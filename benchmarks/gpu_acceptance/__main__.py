"""Acceptance of a GPU before anyone trusts it with a run, in one command: docs/benchmarks.md.

    python -m benchmarks.gpu_acceptance --models 0.5b 1b
    python -m benchmarks.gpu_acceptance --model DIR --parts ipc canary

Needs no network: models of the given sizes are made here, with random weights. At most `--minutes`. Exit code 1 if a
part failed. Without a GPU the same runs in small.
"""

import argparse
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.gpu_acceptance.models import SIZES
from benchmarks.gpu_acceptance.parts import PARTS
from benchmarks.gpu_acceptance.runner import MODEL_SECONDS, PROBE_SECONDS, Acceptance, Outcome, run_part, scratch_folder

DTYPES = ("float32", "bfloat16")
RESULTS = Path("benchmarks/results/gpu")
FOR_GPU = {"rounds": 3, "publications": 50, "requests": 128, "new_tokens": 128, "row_tokens": 512}
FOR_GPU |= {"micro_batch_tokens": 8192, "kill_mib": 1024}
FOR_CPU = {"rounds": 2, "publications": 5, "requests": 16, "new_tokens": 16, "row_tokens": 128}
FOR_CPU |= {"micro_batch_tokens": 1024, "kill_mib": 256}


def parser() -> argparse.ArgumentParser:
    """Return the arguments. Those that are None depend on the machine."""
    made = argparse.ArgumentParser(
        "python -m benchmarks.gpu_acceptance", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--models", nargs="+", choices=SIZES, help="sizes of random models; 0.5b on a GPU, or tiny")
    made.add_argument("--model", type=Path, help="a model's directory, instead of random ones")
    made.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="all by default")
    made.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="of the mixture; both by default"
    )
    made.add_argument("--minutes", type=float, default=12.0, help="parts that no longer fit are left out")
    made.add_argument("--out", type=Path, help=f"JSON; {RESULTS}/acceptance-CARD.json by default")
    made.add_argument("--jobs", type=int, default=1, help="parts at a time: above 1, no figure of time means anything")
    made.add_argument("--rounds", type=int, help="publications that are timed, for each transport")
    made.add_argument("--publications", type=int, help="of the canary, at a learning rate of 5e-7")
    made.add_argument("--requests", type=int, help="that an engine samples together")
    made.add_argument("--new-tokens", type=int, help="of each request")
    made.add_argument("--row-tokens", type=int, help="of a prompt with its completion, in the learner")
    made.add_argument("--micro-batch-tokens", type=int, help="of a forward pass of the learner")
    made.add_argument("--kill-mib", type=int, help="MiB that travel while a receiver is killed")
    made.add_argument("--engine-memory", type=float, default=0.3, help="share of the card for an engine")
    made.add_argument("--eager", action="store_true", help="no compiled graphs, for mixture and generation too")
    made.add_argument("--offload-optimizer", action="store_true", help="optimizer state in host memory")
    made.add_argument("--peak-flops", type=float, help="of the card in bfloat16, for a card that is not in the table")
    return made


def models_of(arguments: argparse.Namespace, machine: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """Make the models; return the directories of each, or a `failure`, by name."""
    sizes = arguments.models or ["0.5b" if machine["cuda"] else "tiny"]
    wanted = {arguments.model.name: {"source": str(arguments.model.resolve())}} if arguments.model else None
    made: dict[str, dict[str, Any]] = {}
    for name, source in (wanted or {size: {"size": size} for size in sizes}).items():
        found = run_part("models", source | {"directory": str(folder / name)}, folder / f"{name}.log", MODEL_SECONDS)
        failed = {"failure": f"the model could not be made: {found['reason']}"}
        made[name] = found["figures"] if found["status"] == "ok" else failed
    return made


def row(outcome: Outcome) -> str:
    """Return a row of the table."""
    shown = {name: value for name, value in outcome.figures.items() if isinstance(value, int | float | str)}
    figures = "  ".join(f"{n} {v:.4g}" if isinstance(v, float) else f"{n} {v}" for n, v in shown.items())
    what = f"{outcome.part:<13}{outcome.model:<12.11}{outcome.dtype:<10}{outcome.status:<9}{outcome.seconds:>7.1f}  "
    return what + "  ".join(part for part in (outcome.reason, figures) if part)


def main() -> None:
    arguments = parser().parse_args()
    if arguments.model and not (arguments.model / "config.json").is_file():
        sys.exit(f"--model {arguments.model} has no config.json; name a Hugging Face directory, or sizes with --models")
    from launch.output.summary import package_versions

    began = time.monotonic()
    shared = scratch_folder(arguments.out or RESULTS)
    with shared as scratch, tempfile.TemporaryDirectory(prefix="offbeat-models-") as models_folder:
        probed = run_part("machine", {}, scratch / "machine", PROBE_SECONDS)
        if probed["status"] != "ok":
            sys.exit(f"torch cannot say what this machine has: {probed['reason']}\n{probed['log']}")
        machine = probed["figures"]
        defaults = FOR_GPU if machine["cuda"] else FOR_CPU
        names = (*defaults, "engine_memory", "eager", "offload_optimizer", "peak_flops")
        given = {name: getattr(arguments, name) for name in names}
        settings = {name: defaults.get(name) if value is None else value for name, value in given.items()}
        card = re.sub(r"[^a-z0-9]+", "-", machine.get("card", "cpu").lower())
        out = arguments.out or RESULTS / f"acceptance-{card}.json"
        head = {
            "arguments": {
                name: str(v) if isinstance(v, Path) else v for name, v in vars(arguments).items() if name != "out"
            },
            "settings": settings,
            "machine": record.machine() | machine,
            "versions": package_versions(),
        }
        models = models_of(arguments, machine, Path(models_folder))
        acceptance = Acceptance(settings, machine, scratch, arguments.minutes, began)

        def report(outcome: Outcome) -> None:
            acceptance.write(out, head | {"seconds": round(time.monotonic() - began, 1)})
            print(row(outcome), flush=True)

        print(f"{'part':<13}{'model':<12}{'dtype':<10}{'status':<9}{'seconds':>7}")
        acceptance.run(models, arguments.parts, arguments.dtypes, arguments.jobs, report)
    counts = {status: sum(each.status == status for each in acceptance.outcomes) for status in STATUSES}
    print(", ".join(f"{count} {status}" for status, count in counts.items()), f"in {out}")
    sys.exit(1 if counts["failed"] else 0)


STATUSES = ("ok", "failed", "skipped")

if __name__ == "__main__":
    main()
