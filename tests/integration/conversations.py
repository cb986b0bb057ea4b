"""An environment and a judge of conversations. Their processes import this file, and so nothing heavy may be here."""

from __future__ import annotations

from collections.abc import Sequence

from actors.records import Completion, Prompt


class Echo:
    """Says `paper` twice, then nothing. A tool that fails now and then is in the way of none but its own prompt."""

    failed = False

    def __init__(self, replies: int) -> None:
        self.left = replies

    def reset(self, prompt: Prompt) -> None:
        self.prompt = prompt.text

    async def step(self, message: str) -> dict[str, str] | None:
        if not Echo.failed and self.prompt == "red south":
            Echo.failed = True
            raise ConnectionError("the tool is away")
        self.left -= 1
        return {"role": "user", "content": "paper"} if self.left >= 0 else None


def longest(prompt: Prompt, completions: Sequence[Completion]) -> list[int]:
    """Prefer long conversations; each must be a turn of the policy, then one of each."""
    for completion in completions:
        roles = [role for role, _ in completion.messages]
        assert roles == ["assistant", "user"] * (len(roles) // 2) + ["assistant"], roles
        assert completion.messages[-1][1] == completion.text
    return [len(completion.messages) for completion in completions]
