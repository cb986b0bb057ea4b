"""Data sets as the policy sees them: prompts, demonstrations and preferences, as token ids with their places in files.

`rows.py` reads rows, `text.py` tokenises, `conversations.py` writes and closes answers; `prompts.py`,
`demonstrations.py` and `preferences.py` say what a good row is. Malformed rows become `Problem`s with file and line.
Must not import models, generators, judges or Ray.
"""
