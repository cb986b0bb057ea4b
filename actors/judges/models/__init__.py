"""Judges that run a sequence-classification model in their own process: reward models and preference models.

Data flows from prompt and completion (`inputs.py`, token ids) through the network to judgements. The networks are used
by `learner/stages` too, which trains them. Must not import torch in `inputs.py`, which judges behind HTTP share.
Must not know how a model is trained or what its judgements are used for.
"""
