"""Programs of a policy in a sandbox: started without rights, bounded, and gone afterwards.

`confine.py`, `solution.py` and `tester.py` are scripts for the bare interpreter, outside any package; `process.py`
starts them. Must not know judges, prompts or completions.
"""
