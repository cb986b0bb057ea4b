"""Rollout generation: leases and published weights in, groups of completions out.

`generator.py` runs one `engine.py` (vLLM), which may hold a second model (`mixture.py`) and receives weights inside
vLLM's workers (`weight_receiver.py`); `weights.py` defines and verifies a publication. Must not import Ray, the replay
buffer or judges. `proof` says whether a publication is in use. Few modules import vLLM: see docs/architecture.md.
"""
