"""The learner makes policies: losses, log-probs, training under DeepSpeed, weight sync and checkpoints.

Also the stages that train on fixed data sets. May import records and configuration from `actors`; must not import
`launch`, Ray or vLLM. Only `learner/backend/sharded.py` imports deepspeed.
"""
