"""Models on ranks: DeepSpeed's engine, checkpoints, model directories, agreement between processes.

`sharded.py` alone imports DeepSpeed and is given what to train on. `checkpoints.py` works without torch, so that the
driver can use it. Must not know losses, batches of a run, or Ray.
"""
