"""`offbeat evaluate`: sampled answers, their judgement, a selection among them, and pairs for `offbeat dpo`.

`evaluate.py` samples and judges with the run's own actors, `best_of.py` computes accuracies, `solutions.py` writes
files. The last two are pure and must not know engines or judges.
"""
