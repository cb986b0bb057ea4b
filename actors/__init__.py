"""Offbeat: asynchronous distributed RLHF. `actors` makes data; `learner` makes policies; `launch` makes runs.

    prompts --lease--> generators (vLLM) --> judges --> replay buffer --batch--> learner (DeepSpeed) --> checkpoints
       ^                    ^                         staleness bound                |
       |                    '------------- weights of version v+1, verified <--------'
       '---- ledger: every prompt offered -> leased -> generated -> judged -> trained | dropped (reason), exactly once

Imports go `launch -> learner -> actors`, never back; only `launch` closes the loop, at run time. Classes are plain:
`actors/remote.py` and `launch/cluster/wiring.py` turn them into Ray actors. `records.py` defines what travels. Within
`actors`, only `actors/generation/` may import vLLM, only `remote.py` Ray, and every `config.py` stays light.
"""
