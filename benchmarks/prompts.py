"""A million prompts from a file to the first lease: seconds and memory, without the cache and from it.

    python -m benchmarks.prompts [KIND ...] [--rows 1000000] [--before CHECKOUT] [--output FILE]

Rows are random words of the documentation, about a hundred tokens each, as texts or as chats of a system and a user
message. Each measurement is a process of its own, which reads the file as a run does. `--before` measures another
checkout as well, on the same files. `--table` prints the file's rows as Markdown and measures nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
KINDS = ("texts", "chats")
WORDS = {"texts": 86, "chats": 69}
"""Words a row, for about a hundred tokens with SmolLM2's tokenizer and template."""
SAMPLE_SECONDS = 0.05
READ = 20_000
"""Prompts that are read one by one once they are there."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; default: all")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--tokenizer", default="models/smollm2-135m-instruct")
    parser.add_argument("--before", type=Path, help="another checkout to measure as well")
    parser.add_argument("--work", type=Path, help="directory for rows and cache; unset: a temporary one")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/prompts.json"))
    parser.add_argument("--table", action="store_true", help="print the rows of --output, and stop")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measure(arguments.measure, arguments.tokenizer)))
        return
    if arguments.table:
        print(table(json.loads(arguments.output.read_text())["starts"]))
        return
    unknown = [kind for kind in arguments.kinds if kind not in KINDS]
    if unknown:
        parser.error(f"no kind {unknown[0]!r}; the kinds are {', '.join(KINDS)}")
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        starts = [each for kind in arguments.kinds or KINDS for each in _starts(kind, arguments, work)]
    _write(arguments.output, {"rows": arguments.rows, "tokenizer": arguments.tokenizer, "starts": starts})
    print(table(starts))


def _starts(kind: str, arguments: argparse.Namespace, work: Path) -> Iterator[dict[str, Any]]:
    file = work / f"{kind}.jsonl"
    write_rows(file, kind, arguments.rows)
    checkouts = [("before", arguments.before)] if arguments.before else []
    for start, checkout in [*checkouts, ("without the cache", ROOT), ("from the cache", ROOT)]:
        found = _measured(file, arguments.tokenizer, checkout, work / "cache")
        yield {"kind": kind, "start": start, "file_bytes": file.stat().st_size, **found}
        print(json.dumps({"kind": kind, "start": start, **found}), flush=True)
    file.unlink()


def _measured(file: Path, tokenizer: str, checkout: Path, cache: Path) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OFFBEAT_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--measure", str(file), "--tokenizer", tokenizer]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def write_rows(file: Path, kind: str, rows: int) -> None:
    """Write random rows, the same at every call."""
    rng = random.Random(0)
    pages = " ".join(path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    words = re.findall(r"[A-Za-z]+[,.]?", pages)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as out:
        for number in range(rows):
            text = " ".join(rng.choices(words, k=WORDS[kind]))
            user = {"role": "user", "content": text}
            prompt = text if kind == "texts" else [{"role": "system", "content": "Answer in one sentence."}, user]
            out.write(json.dumps({"prompt": prompt, "answer": str(number)}) + "\n")


def measure(file: Path, tokenizer_path: str) -> dict[str, Any]:
    """Read a file as a run does. Memory is what this process alone has, in MB above what it had before."""
    from actors.data.config import PromptConfig
    from actors.data.prompts import PromptSource
    from actors.data.text import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_path)
    config = PromptConfig(source=str(file), answer_field="answer")
    before = memory()
    with peak() as most:
        started = time.perf_counter()
        prompts = PromptSource(config, tokenizer)
        prompts.prompt(0)
        fingerprint = prompts.fingerprint()
        seconds = time.perf_counter() - started
    gc.collect()
    after = memory()
    started = time.perf_counter()
    tokens = sum(len(prompts.prompt(position).token_ids) for position in range(READ)) / READ
    each = (time.perf_counter() - started) / READ
    return {
        "seconds": round(seconds, 2),
        "rows_per_second": round(len(prompts) / seconds),
        "tokens_per_row": round(tokens, 1),
        "tokens_mb": round(4 * tokens * len(prompts) / 1e6),
        "peak_mb": round(most["RssAnon"] - before["RssAnon"]),
        "held_mb": round(after["RssAnon"] - before["RssAnon"]),
        "mapped_mb": round(after["RssFile"] - before["RssFile"]),
        "processes_peak_mb": round(most["processes"]),
        "microseconds_per_prompt": round(1e6 * each, 1),
        "fingerprint": fingerprint,
    }


def memory() -> dict[str, float]:
    """Resident memory of this process in MB, by kind, and what its children alone have together."""
    tasks = Path("/proc/self/task").glob("*/children")
    children = [_resident(child) for each in tasks for child in each.read_text().split()]
    return {**_resident("self"), "processes": sum(each.get("RssAnon", 0.0) for each in children)}


def _resident(process: str) -> dict[str, float]:
    try:
        status = Path("/proc", process, "status").read_text()
    except OSError:  # it has ended
        return {}
    return {name: int(kib) / 976.5625 for name, kib in re.findall(r"^(Rss\w+):\s+(\d+) kB", status, re.MULTILINE)}


@contextmanager
def peak() -> Iterator[dict[str, float]]:
    """Yield the most of `memory` so far, by kind."""
    most, over = memory(), threading.Event()

    def sample() -> None:
        while not over.wait(SAMPLE_SECONDS):
            most.update({name: max(most[name], value) for name, value in memory().items()})

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


def table(starts: list[dict[str, Any]]) -> str:
    """Rows as Markdown."""
    lines = [
        "| prompts | start | seconds | rows/s | tokens, MB | memory, most and then, MB | processes beside, MB | "
        "us a prompt |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in starts:
        megabytes = [f"{each['tokens_mb']:,}", f"{each['peak_mb']:,}, {each['held_mb']:,}"]
        cells = [each["kind"], each["start"], f"{each['seconds']:.1f}", f"{each['rows_per_second']:,}"]
        cells += [*megabytes, f"{each['processes_peak_mb']:,}", f"{each['microseconds_per_prompt']}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _write(path: Path, result: dict[str, Any]) -> None:
    from benchmarks import record

    versions = {package: version(package) for package in ("transformers", "tokenizers", "pyarrow", "jinja2")}
    record.write(path, {"machine": record.machine(), "versions": versions, **result})


if __name__ == "__main__":
    main()
