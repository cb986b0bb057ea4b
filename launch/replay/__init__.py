"""`offbeat replay`: train a run's learner again on the batches of its journal, and compare with the run.

`replay.py` feeds the batches to the learner's ranks; `report.py` compares metrics and weights and is pure. No generator
and no judge is started.
"""
