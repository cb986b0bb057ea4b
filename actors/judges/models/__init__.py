"""Judges that run a sequence-classification model in their own process: reward models and preference models.

Data flows from prompt and completion (`inputs.py`, token ids) through the network to judgements. `learner/stages`
trains the networks. `inputs.py` must not import torch, because judges behind HTTP share it. Must not know how a model
is trained or what its judgements are used for.
"""
