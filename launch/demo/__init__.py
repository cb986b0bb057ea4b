"""`offbeat demo`: two ordinary runs from one start, compared by enumeration.

`demo.py` configures the runs, trains them and prints the comparison; `triangle.py` draws family shares in characters.
Must not contain training code.
"""
