"""Prompts as columns of token ids: parsed and tokenised in several processes, kept in a file for the next start.

`reading.py` decides how; `parsing.py` makes prompts of rows, `processes.py` spreads that, `table.py` holds the result,
`cache.py` keeps it and `identity.py` says of what it is the result. None of them knows the order of prompts.
"""
