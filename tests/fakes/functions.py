"""Judges of a line for `kind: function`. It imports nothing: the judge's process does so before it answers."""


def alike(prompt: object, completions: list[str]) -> list[float]:
    return [0.0] * len(completions)
