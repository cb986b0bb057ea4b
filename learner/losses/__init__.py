"""Losses as pure functions of token or sequence log-probs: `pairs.py` for preferred pairs, `games.py` for matrix games.

A loss takes tensors and its own settings, and returns one loss per pair or game with its metrics. Batching and
gradient steps are in `learner/training/`. Must not import models, records or process groups.
"""
