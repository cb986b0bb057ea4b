"""Judge with a user's Python function, in a process that ends with the judge, but cannot end the judge.

`judge.py` and `host.py` run in the judge actor, `child.py` in the function's process, `supervisor.py` between the two.
"""
