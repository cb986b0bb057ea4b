"""Offbeat: asynchronous distributed RLHF. `actors` makes data; `learner` makes policies; `launch` makes runs.

    prompts --lease--> generators (vLLM) --> judges --> replay buffer --batch--> learner (DeepSpeed) --> checkpoints
       ^                    ^                            admission + staleness bound     |
       |                    '---------------- weights, version v+1, verified <----------'
       '---- ledger: every prompt offered -> leased -> generated -> judged -> trained | dropped(reason), once

The import law is `launch -> learner -> actors`, never back. The consumer of a record imports it from its producer,
and the loop closes only at run time, in `launch`. Classes are plain; `actors/remote.py` and `launch/cluster/wiring.py`
alone make Ray actors of them, so the same parts run in one process and on a cluster.

Heavy imports are confined: vllm to `engine.py` and `weight_receiver.py`; ray to `remote.py`;
transformers to the tokenizer in `prompts.py` and to `judges/`. Every `config.py` imports nothing heavy.
"""
