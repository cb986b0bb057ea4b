"""Choose a run's plug-in: the only place on the production path that names one."""

from actors.judges.config import BradleyTerryJudgeConfig, GoldJudgeConfig
from actors.settings import WORLD
from launch.run.protocols import RunPlugin
from launch.settings.run import RunConfig


def plugin_of(config: RunConfig) -> RunPlugin:
    """Return the embedded world's plug-in if the run uses its model, prompts or judges, else the default one."""
    judged = any(isinstance(judge, GoldJudgeConfig | BradleyTerryJudgeConfig) for judge in config.judging.judges)
    if not judged and WORLD not in (config.model.path, config.prompts.source):
        return RunPlugin()
    from launch.run.world import EmbeddedWorld

    return EmbeddedWorld()
