"""The optimizer step, the objectives that define losses on rollouts, and the learner rank that runs them.

Batches of pairs or games come in from the driver; statistics and weights go out. Must not depend on policy versions,
generators or Ray.
"""
