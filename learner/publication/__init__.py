"""Publication: how one policy version's weights leave the learner (weight sync, seen from the sender).

`publisher.py` stores tensors in shared memory or chunks, with a manifest of names, shapes and fingerprints;
`transfer.py` sends them from GPU to GPU. Receivers (`actors/generation/weights.py`) check what arrives against the
manifest. Must not know who computed the weights, or Ray.
"""
