"""The frozen reference on actors of its own: it scores rollouts while they are judged, off the learner's path.

The log-probs travel with the completions. Must not depend on losses, optimizers, DeepSpeed or Ray.
"""
