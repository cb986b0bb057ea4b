"""The process of a run: its supervisor, and what signals do to it."""
