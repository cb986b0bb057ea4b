"""Judge with a user's function: send requests to its process, and start the process again after it ended."""

import asyncio
import contextlib
from collections.abc import Sequence

from actors.errors import UsageError
from actors.judges.config import FunctionJudgeConfig
from actors.judges.functions.host import AnotherBatchError, FunctionProcess, hosted
from actors.judges.protocol import JudgeDeathError
from actors.records import Group, Judgement


class FunctionJudge:
    """Calls the function once per group, one group after another, in its process."""

    def __init__(self, config: FunctionJudgeConfig) -> None:
        """Start the process and wait for the import. Raises UsageError if the function cannot be used."""
        self._config = config
        self._starting = asyncio.Lock()
        started = hosted(FunctionProcess.start(config))
        try:
            self._process = started.result()
        except BaseException:  # Ctrl-C among them
            started.cancel()
            raise

    @property
    def name(self) -> str:
        """Name the function, with its file and line."""
        return self._process.name

    @property
    def signature(self) -> str:
        """Say how the function is called."""
        return self._process.signature

    async def prepare(self) -> None:
        """Start the process again if it has ended. Raises JudgeDeathError if the function can no longer be used."""
        await asyncio.wrap_future(hosted(self._alive()))

    async def judge(self, groups: Sequence[Group]) -> list[Judgement]:
        """Judge the groups. Cancelling this call ends the process and all its children.

        Raises UserCodeError if the function raises, RunError if an answer is neither one finite number per completion
        nor a preference table, UsageError if the function names a column that is not read from the data,
        JudgeDeathError if the process ends.
        """
        return await asyncio.wrap_future(hosted(self._judged(groups)))

    def close(self) -> None:
        """End the process and all that it started."""
        hosted(self._process.end("its judge was closed")).result()

    async def _alive(self) -> FunctionProcess:
        async with self._starting:  # two batches at a time start one process
            if self._process.ended:
                await self._process.gone()
                try:
                    self._process = await FunctionProcess.start(self._config)
                except UsageError as error:  # the function worked before, so the batch is not at fault
                    raise JudgeDeathError(f"{self.name} could not be started again: {error}") from error
            return self._process

    async def _judged(self, groups: Sequence[Group]) -> list[Judgement]:
        while True:  # until the batch's own time is up
            with contextlib.suppress(AnotherBatchError):
                return await (await self._alive()).judge(groups)
