"""`offbeat report`: one HTML file that shows a run, or several beside each other.

Reads what runs have recorded and changes none of it. `records.py`, `samples.py` and `timeline.py` read, `verdict.py`
says, `drawing/` draws, `sections.py` and `compare.py` put it on a page. Starts nothing and needs no matplotlib.
"""
