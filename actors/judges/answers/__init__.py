"""Judges of checkable answers: a known solution, tests of a program, instructions that a rule can check.

Must not know generation, the replay buffer or Ray. Rules are pure functions beside the judges; whatever a policy wrote
is bounded before a library reads it, and run only in `actors/judges/sandbox`.
"""
