"""Runs to submit, and stand-ins for the programs that launchers call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launch.settings.loading import load_config
from launch.submit.training import Training


def training(config: Path, overrides: tuple[str, ...] = (), **changes: Any) -> Training:
    """A run whose file is valid; its overrides may be any words."""
    return Training(config, load_config(config), overrides, **changes)


def executable(path: Path, text: str) -> Path:
    path.write_text("#!/bin/bash\n" + text)
    path.chmod(0o755)
    return path
