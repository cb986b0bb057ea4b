"""DeepSpeed and files: one sharded model on its ranks, its checkpoints, and model directories.

Tensors, configuration and checkpoint directories come in; forward passes, optimizer steps and weights go out. Must not
depend on losses, data, rollouts or Ray.
"""
