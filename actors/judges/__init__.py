"""Judges score a prompt's completions. One protocol, one factory, one module per kind, one worker around any judge.

Groups enter `worker.py` unjudged and leave with a checked judgement, or as a `Failure` with the reason. Each kind is
imported only if the configuration asks for it. Must not import leases' admission, the replay buffer or Ray.
`actors/replay_buffer/pairing.py` turns judgements into pairs and games.
"""
