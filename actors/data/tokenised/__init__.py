"""Prompts as columns of token ids: parsed and tokenised in several processes, kept in a file for the next start.

`reading.py` decides where; `parsing.py` makes prompts of rows, `processes.py` spreads that work over processes,
`table.py` holds the result, `cache.py` stores it, and `identity.py` hashes the inputs that it depends on. None of these
modules knows the order of prompts.
"""
