"""What `offbeat train` checks of its models before it starts anything, and what a resumed run must not change."""

from typing import Any

from actors.data.prompts import PromptSource
from actors.errors import UsageError
from actors.hub import check_same_architecture, positions_of, read_text_config
from launch.run.protocols import RunPlugin
from launch.settings.run import RunConfig


def check_model(config: RunConfig, plugin: RunPlugin) -> None:
    """Raise UsageError if a model cannot be read, the policy is too short for the run's sequences, or the reference
    does not fit it."""
    if not plugin.check_model(config):
        return
    model = read_text_config("model.path", config.model.path)
    if config.model.reference is not None:
        reference = read_text_config("model.reference", config.model.reference)
        if reference.vocab_size != model.vocab_size:
            raise UsageError(
                f"model.reference {config.model.reference} has a vocabulary of {reference.vocab_size} tokens and the "
                f"policy {config.model.path} one of {model.vocab_size}; use a reference with the policy's vocabulary"
            )
        if config.opponent is not None and config.opponent.needs_second_model:
            check_same_architecture(config.model.path, config.model.reference)
    longest = positions_of(model)
    if longest is not None and config.generators.max_model_len > longest:
        raise UsageError(
            f"generators.max_model_len {config.generators.max_model_len} exceeds the {longest} positions of "
            f"{config.model.path}; lower it to {longest} or less"
        )


def fixed_settings(config: RunConfig, prompts: PromptSource, plugin: RunPlugin) -> dict[str, Any]:
    """Return what a resumed run must share with the saved one, as JSON values; everything else may change."""
    fixed: dict[str, Any] = {
        "the prompts": prompts.fingerprint(),
        "prompts.seed": config.prompts.seed,
        "deterministic": config.deterministic,
        "prompts.shuffle": config.prompts.shuffle,
        "model.path": config.model.path,
        "model.reference": config.model.reference,
        "sampling": config.sampling.model_dump(mode="json"),
        "learner.loss.kind": config.learner.loss.kind,
        "evaluation.prompts": config.evaluation.prompts,
    }
    if config.opponent is not None:
        names = {"kind", "beta", "completions_per_prompt", "max_staleness"}
        fixed["learner.loss.opponent"] = config.opponent.model_dump(mode="json", include=names)
    return fixed | plugin.fixed(config)
