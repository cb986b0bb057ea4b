"""The stages that train before a run: `sft`, `preference` and `dpo`.

`driver.py` is their one run: it prepares data and model, drives the ranks, keeps the best checkpoint, writes the
summary. A module per verb says only what is special to it; examples and losses are in `learner/stages/`. Must not
import the training loop or generators.
"""
