"""`offbeat doctor`: the machine, and the machine against a run. `checkup.py` is where to begin."""
