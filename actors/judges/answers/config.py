"""Settings of the judges of checkable answers. Imports nothing heavy."""

import math
from typing import Literal

from pydantic import Field

from actors.settings import Settings


class VerifierJudgeConfig(Settings):
    """The right final answer, in the GSM8K format by default: 1 for it, 0 otherwise."""

    kind: Literal["verifier"] = "verifier"
    format: Literal["pattern", "boxed", "math", "choice"] = Field(
        default="pattern",
        description=r"where the final answer is: `pattern`, found by answer_pattern; `boxed`, the last \boxed{...}; "
        "`math`, the last box or else what follows `the answer is`; `choice`, a letter there",
    )
    answer_pattern: str = Field(
        default=r"####\s*([^\n]+)",
        description="regular expression; group 1 of its last match is the final answer. With another format than "
        "pattern, it is used only for gold answers without a box",
    )
    format_score: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="score of a wrong answer in the right format; any other wrong one: 0"
    )


class CodeJudgeConfig(Settings):
    """Tests of a completion's Python program, run in a sandbox without network and rights."""

    kind: Literal["code"] = "code"
    score: Literal["share", "all"] = Field(
        default="share", description="share of the tests that pass, or `all`: 1 if every one does, else 0"
    )
    time_limit_seconds: float = Field(
        default=10.0, gt=0.0, le=600.0, description="seconds for a completion's tests; those without a turn fail"
    )
    memory_mb: int = Field(default=512, ge=64, description="MiB of address space for each process of a program")
    processes: int = Field(default=4, ge=1, le=256, description="processes and threads of a program at a time")
    disk_mb: int = Field(default=16, ge=1, description="MiB of files in a program's directory, which is in memory")
    max_concurrent_programs: int = Field(default=4, ge=1, description="programs that run at a time")

    def longest_seconds(self, programs: int) -> float:
        """Return the longest time (s) for a batch of `programs`, if another batch as large takes half the turns."""
        return 2 * math.ceil(programs / self.max_concurrent_programs) * self.time_limit_seconds


class InstructionsJudgeConfig(Settings):
    """Instructions of IFEval that a rule can check; scores how many of a prompt's instructions are followed."""

    kind: Literal["instructions"] = "instructions"
    score: Literal["share", "all"] = Field(
        default="share", description="share of the instructions that are followed, or `all`: 1 if every one is, else 0"
    )
    strictness: Literal["strict", "loose"] = Field(
        default="strict", description="`loose` also tries the answer without asterisks, first line and last line"
    )
