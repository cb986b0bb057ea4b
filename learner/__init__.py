"""The learner makes policies from batches of pairs: losses, log-probs, DeepSpeed engine, publication, checkpoints.

It may import records and configuration from `actors`, and must not know `launch`, Ray or vLLM.
`deepspeed` is imported in `sharded.py` only.
"""
