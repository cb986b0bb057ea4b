"""Publication: how one policy version's weights leave the learner (weight sync, seen from the sender).

`publisher.py` makes the manifest of names, shapes and fingerprints; `senders.py` holds one class for each transport,
which keeps the tensors and hands them out. Receivers (`actors/generation/receivers.py`) check what arrives against the
manifest. Must not know who computed the weights, or Ray.
"""
