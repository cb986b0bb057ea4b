"""The contract of an environment. Imports its class and checks its answers."""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from actors.environments.config import EnvironmentConfig
from actors.errors import RunError, UsageError
from actors.records import Prompt
from actors.user_code import load_named

Message = Mapping[str, Any]  # a chat message: `role` and `content`


class Environment(Protocol):
    """A tool, a simulated user or a critic. Each conversation makes its own; one thread at a time uses it."""

    def reset(self, prompt: Prompt) -> None:
        """Prepare for a conversation about `prompt`. Called once, before the first `step`."""
        ...

    def step(self, message: str) -> Message | Awaitable[Message | None] | None:
        """Answer the policy's `message` with a chat message, such as `{"role": "tool", "content": "42"}`.

        None ends the conversation. An exception or a late answer fails the prompt, which is sampled again.
        """
        ...


def environment_class(config: EnvironmentConfig) -> Callable[..., Environment]:
    """Import the class that `config.path` names.

    Raises UsageError if it cannot be imported, lacks `reset` or `step`, or does not take `config.arguments`.
    """
    setting = f"sampling.environment.path '{config.path}'"
    found = load_named("sampling.environment.path", config.path, "package.module:Class")
    name = config.path.partition(":")[2]
    missing = [method for method in ("reset", "step") if not callable(getattr(found, method, None))]
    if missing:
        raise UsageError(
            f"{setting} names no environment: {name} has no {' and no '.join(missing)}; give a class with "
            "`reset(prompt)` and `step(message)`, see docs/environments.md"
        )
    try:
        inspect.signature(found).bind(**config.arguments)
    except TypeError as error:
        raise UsageError(
            f"{setting} does not take sampling.environment.arguments {config.arguments}: {error}; its signature is "
            f"{name}{inspect.signature(found)}"
        ) from error
    return found


def checked_reply(reply: Any, path: str) -> Message | None:
    """Return the answer of `step`. Raises RunError unless it is a chat message of another role, or None."""
    if reply is None:
        return None
    fits = isinstance(reply, Mapping) and all(isinstance(reply.get(key), str) for key in ("role", "content"))
    if not fits or reply["role"] == "assistant":
        raise RunError(
            f"environment '{path}' answered {reply!r:.200}; step must return a message such as "
            "{'role': 'tool', 'content': '42'}, whose role is not 'assistant', or None to end the conversation"
        )
    return reply
