"""A user's Python function as a judge, in a process that ends with the judge and never takes the judge with it.

`judge.py` and `host.py` run in the judge actor, `supervisor.py` between the two, and `child.py` with the function.
"""
