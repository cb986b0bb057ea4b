"""`offbeat report`: one HTML file that shows a run, or several beside each other.

Reads what runs have recorded and changes none of it. `records.py` reads, `verdict.py` says, `series.py` and `svg.py`
draw, `sections.py` and `compare.py` put it on a page. Knows neither actors nor learner nor matplotlib.
"""
