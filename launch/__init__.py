"""Launching makes runs of actors and learner: settings, command line, processes, training loop, output.

`cli.py` parses a verb and imports its sub-package; `train.py` is one training run from checks to summary. Settings flow
down from `settings/`, processes are made in `cluster/`, the loop in `run/` drives them, `output/` writes what they
report. Nothing in `actors` or `learner` may import this package.
"""
