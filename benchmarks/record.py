"""What every raw result says of the machine, and how it is written."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Cores, architecture and Python of this machine."""
    return {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}


def write(path: Path, result: dict[str, Any]) -> None:
    """Writes `result` as JSON, with the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
