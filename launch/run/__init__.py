"""The training loop of a run in the driver process: asyncio tasks, the generator and judge pools, plug-ins.

Rollouts flow from the generators over the judges (`pools`) into the replay buffer, batches from there through `loop.py`
to the learner, publications back. The loop knows its parts by `protocols.py` only and must not import Ray, vLLM or
DeepSpeed. `plugins.py` alone chooses what a task family adds to a run.
"""
