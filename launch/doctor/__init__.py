"""`offbeat doctor`: can this machine hold a run? `checkup.py` runs every check; `train` uses the blocking ones.

Facts come from `machine.py` (this host) and `model_facts.py` (model files), estimates from `footprint.py`. Checks
compare them and return findings. Must not start an engine, write a file or download anything.
"""
