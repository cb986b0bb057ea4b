"""The embedded world's policy as an exact table: training it, evaluating it, and solving its preference game.

Runs in the embedded world, the demo and benchmarks use it. Must not depend on ranks, DeepSpeed, Ray or vLLM.
"""
