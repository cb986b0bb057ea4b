"""Settings of what a run keeps of its completions. Imports nothing heavy."""

from pydantic import Field

from actors.settings import Settings


class SamplesConfig(Settings):
    """Completions for people to read: the best and the worst answer to a prompt, now and then."""

    every_updates: int = Field(
        default=20,
        ge=0,
        description="optimizer steps between samples in `samples.jsonl`, TensorBoard and the log; the first update has "
        "one too; 0: none",
    )
    log: bool = Field(default=True, description="show samples in the log as well; files have them in any case")
    max_characters: int = Field(default=160, ge=20, description="of a prompt or an answer in the log; files have all")


class JournalConfig(Settings):
    """The record of every group trained on; `offbeat replay` trains on it again."""

    enabled: bool = Field(default=True, description="write the journal; without it a run cannot be replayed")
    updates_per_file: int = Field(
        default=50, ge=1, description="optimizer steps per file; a checkpoint also closes the current file"
    )
    max_mib: int = Field(default=2048, ge=1, description="size of all files (MiB); beyond it the oldest are removed")
