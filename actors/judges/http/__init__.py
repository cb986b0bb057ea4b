"""Judges behind HTTP: a language model's comparisons, or a served reward model's logits.

`client.py` sends requests with retries, limits and counts; `endpoint.py` and `served.py` ask the questions and turn
answers into judgements. Groups go out as JSON and come back as judgements, or as the error of a single group.
Must not hold weights: models that run in the judge's own process are in `actors/judges/models`.
"""
