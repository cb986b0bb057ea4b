"""Settings of an environment. Imports nothing heavy."""

from typing import Any

from pydantic import Field

from actors.settings import Settings


class EnvironmentConfig(Settings):
    """The code that answers the policy between its turns. All tokens of a conversation together obey
    sampling.max_new_tokens."""

    path: str = Field(
        description="import path of the environment's class, `package.module:Class`, from the working directory of the "
        "run or an installed package, on every node. `actors.environments.calculator:Calculator` comes with Offbeat"
    )
    arguments: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the class")
    max_turns: int = Field(
        default=8, ge=1, description="messages of the policy per conversation; one that goes on is cut and unfinished"
    )
    timeout_seconds: float = Field(
        default=30.0, gt=0.0, description="longest time for one answer; after it the prompt is sampled again"
    )
