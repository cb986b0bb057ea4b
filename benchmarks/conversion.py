"""Rows per second and peak memory of `offbeat data` on synthetic pairs.

python -m benchmarks.conversion --rows 1000000 --output benchmarks/results/conversion.json
"""

import argparse
import json
import os
import random
import resource
import tempfile
import time
from pathlib import Path

from rich.console import Console

from launch.data.prepare import run_data
from launch.settings.loading import load_config
from launch.settings.verbs import DATA

WORDS = [f"word{number}" for number in range(5000)]
PROMPT_WORDS, RESPONSE_WORDS = 12, 24


def write_pairs(path: Path, rows: int) -> None:
    """Write `rows` different pairs as JSON lines, from a fixed seed."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            prompt, chosen, rejected = (
                " ".join(draw.choices(WORDS, k=count)) for count in (PROMPT_WORDS, RESPONSE_WORDS, RESPONSE_WORDS)
            )
            file.write(json.dumps({"prompt": f"{number} {prompt}", "chosen": chosen, "rejected": rejected}) + "\n")


def measure(rows: int) -> dict[str, float]:
    """Convert `rows` pairs once; time leaves out writing the source."""
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "pairs.jsonl"
        write_pairs(source, rows)
        config = load_config(None, [f"source={source}", f"output={directory}/out"], DATA)
        start = time.perf_counter()
        run_data(config, Console(quiet=True))
        seconds = time.perf_counter() - start
        return {
            "rows": rows,
            "source_mib": source.stat().st_size / 2**20,
            "seconds": seconds,
            "rows_per_second": rows / seconds,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
            "cores": os.cpu_count() or 1,
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    result = measure(arguments.rows)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))
