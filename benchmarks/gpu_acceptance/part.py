"""The process of one part: reads a `Setup` from standard input, writes what was found to a file after every step.

python -m benchmarks.gpu_acceptance.part PART RESULT < SETUP
"""

import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu_acceptance.parts import PARTS, Setup, SkippedError


def machine() -> Iterator[dict[str, Any]]:
    """Say what GPUs this process sees."""
    import torch

    yield {"cuda": torch.cuda.is_available(), "gpus": torch.cuda.device_count()}
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        yield {"card": card.name, "card_bytes": card.total_memory, "capability": f"{card.major}.{card.minor}"}
        yield {"cuda_version": torch.version.cuda}


def end_with_parent() -> None:
    """End this process and those it started when the one that started it is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _steps(name: str, given: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if name == "machine":
        return machine()
    if name == "models":
        from benchmarks.gpu_acceptance.models import make

        return make(**given)
    part = PARTS[name]
    function = getattr(importlib.import_module(f"benchmarks.gpu_acceptance.{part.module}"), part.function)
    return function(Setup(**given))


def main() -> None:
    name, result = sys.argv[1], Path(sys.argv[2])
    end_with_parent()
    figures: dict[str, Any] = {}

    def write(status: str, reason: str = "") -> None:
        text = json.dumps({"status": status, "reason": reason, "figures": figures})
        temporary = result.with_suffix(".tmp")
        temporary.write_text(text)
        temporary.replace(result)

    try:
        for step in _steps(name, json.load(sys.stdin)):
            figures |= step
            write("running")
        write("ok")
    except SkippedError as skipped:
        write("skipped", str(skipped))
    except Exception as error:
        traceback.print_exc()
        write("failed", f"{type(error).__name__}: {error}")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # the libraries' own way out may hang, after everything was said


if __name__ == "__main__":
    main()
