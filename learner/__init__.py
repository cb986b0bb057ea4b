"""The learner makes policies: losses, log-probs, training under DeepSpeed, weight sync and checkpoints.

Also the stages that train on fixed data sets. May import records and configuration from `actors`; must not import
`launch` or Ray. Only `learner/backend/sharded.py` imports deepspeed, only `learner/publication/transfer.py` vllm.
"""
