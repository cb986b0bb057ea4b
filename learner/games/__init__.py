"""Theory of preference games in NumPy: games small enough to solve, and the largest staleness that still converges.

`learner/world/` and `launch/run/` compare runs with these numbers; nothing here reads a run. Must not depend on
torch, models or settings.
"""
