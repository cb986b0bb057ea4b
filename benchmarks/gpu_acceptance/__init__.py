"""Acceptance of a GPU before anyone trusts it with a run: `python -m benchmarks.gpu_acceptance`, docs/benchmarks.md.

`__main__.py` reads the arguments; `runner.py` starts every part in a process of its own and writes the JSON;
`parts.py` lists the parts; `part.py` is such a process. Parts: `transports.py`, `canary.py`, `mixture.py`,
`engines.py`, `learning.py`. They share `models.py`, `learners.py`, `children.py` and `served.py`. On CPU the same in
small. Nothing of it was run on a GPU so far.
"""
