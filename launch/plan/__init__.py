"""`offbeat plan`: what a run will reach, predicted by a simulation of its parts around the real admission.

`model.py` says what a run is made of, `simulation.py` plays it in virtual time and `prediction.py` sums that up.
`recorded.py` reads a finished run, `derive.py` makes a model of it. `split.py` compares splits of GPUs, `report.py`
prints, and `plan.py` is the verb. None of it may know Ray, engines or the learner.
"""
