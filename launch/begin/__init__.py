"""`offbeat init`: a short configuration from a model, data, a judge and this machine.

`command.py` is the verb; `policy.py`, `rows.py` and `judges.py` read what it is given, `room.py` fits the run to the
machine by the doctor's checks, and `lines.py` writes the file.
"""
