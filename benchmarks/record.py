"""Raw results: written whole, each with the machine and the versions."""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

from launch.output.summary import package_versions


def machine() -> dict[str, Any]:
    """Cores, architecture and Python of this machine."""
    return {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}


def write(path: Path, result: dict[str, Any]) -> None:
    """Writes `result` as JSON, with the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def tell(arguments: argparse.Namespace, measured: dict[str, Any]) -> None:
    """Writes what was measured of `arguments.model` to `arguments.output`, with settings and versions; prints it."""
    settings = {key: str(value) for key, value in vars(arguments).items() if key != "output"}
    settings["model"] = arguments.model.name
    result = {"settings": settings} | measured | {"machine": machine(), "versions": package_versions()}
    write(arguments.output, result)
    print(json.dumps({key: value for key, value in result.items() if key != "versions"}, indent=1))
