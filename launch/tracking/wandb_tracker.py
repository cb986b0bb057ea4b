"""W&B as a tracker. The only file that imports `wandb`; read against its version 0.31."""

from __future__ import annotations

import html
import os
import signal
from collections.abc import Mapping
from typing import Any

from launch.settings.output import WandbConfig
from launch.tracking.tracker import RunFacts, children, figures_in

STEP = "update"
SERVICE = "wandb-core"
EXIT_CODES = {"completed": 0, "failed": 1, "interrupted": 130}


class WandbTracker:
    """A run in a W&B project, whose id is the Offbeat run's own. `seconds`: longest upload at the end."""

    def __init__(self, config: WandbConfig, seconds: float) -> None:
        self._config, self._seconds = config, seconds
        self._run: Any = None

    def begin(self, run: RunFacts) -> None:
        """Open the run. The x axis is the update: W&B's own step may not go back, and a resumed run does.

        Raises RuntimeError if there is no key: W&B would ask for one in the terminal.
        """
        # Neither reports to its authors nor lines of its own between the run's.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        if self._config.mode == "online" and not wandb.login(prompt=False, verify=False):
            raise RuntimeError("no key; run `wandb login`, export WANDB_API_KEY, or set tracking.wandb.mode=offline")
        run.own.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=self._config.project,
            entity=self._config.entity,
            mode=self._config.mode,
            id=run.run_id,
            name=run.name,
            job_type=run.verb,
            resume="allow",
            dir=run.own,
            config=dict(run.config),
            allow_val_change=True,
            save_code=False,
            # The run's output stays its own, and the end of this process is not held up by an upload.
            settings=wandb.Settings(console="off", silent=True, finish_timeout=max(self._seconds, 1.0)),
        )
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)

    def log(self, step: int, values: Mapping[str, float], now: float) -> None:
        """Log numbers of an update."""
        self._run.log({STEP: step, **values})

    def text(self, step: int, name: str, text: str) -> None:
        """Log a text as a page, with a slider for its update."""
        import wandb

        page = wandb.Html(f"<pre>{html.escape(text)}</pre>", data_is_not_path=True)
        self._run.log({STEP: step, name: page})

    def end(self, status: str, summary: Mapping[str, Any]) -> None:
        """Keep the summary's figures and finish."""
        self._run.summary.update({"status": status, **figures_in(summary)})
        self._run.finish(exit_code=EXIT_CODES[status])

    def abandon(self) -> None:
        """End W&B's service: its hook at this process's exit would wait for a server that does not answer."""
        for process in children(SERVICE):
            os.kill(process, signal.SIGKILL)
