"""`offbeat data`: preference data read, filtered, split and written, with an account of every row.

`prepare.py` decides on each row and writes; `report.py` counts and prints; rules and formats are in `actors/data/`, and
perplexities come from `learner/stages/`. Must not train or start actors.
"""
