"""The replay buffer: leases out to generators, judged groups in, batches out to the learner.

`admission.py` decides which lease is granted and which group is consumed, `buffer.py` adds prompts and groups,
`opponents.py` decides when opponents may be drawn, `pairing.py` turns groups into pairs or games, `shards.py` makes
several buffers one. Pure Python without a clock: must not import torch, Ray, generators, judges or the learner.
"""
