"""Judges of checkable answers: a known solution, tests of a program, instructions that a rule can check.

Must not know generation, the replay buffer or Ray. Rules are pure functions beside the judges. A policy's text is
bounded before a library reads it, and its programs run only in `actors/judges/sandbox`.
"""
