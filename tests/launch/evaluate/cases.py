"""A configuration with a verifier as judge, and a judged group, for the tests of evaluation."""

from actors.records import Completion, Group, Judgement, Lease, Prompt
from launch.settings.loading import load_config


def config(*overrides):
    return load_config("embedded", ["prompts.answer_field=answer", "judging.judge={kind: verifier}", *overrides])


def group(texts, scores, finished=True, answer="12"):
    ends = [finished] * len(texts) if isinstance(finished, bool) else finished
    completions = tuple(
        Completion((3 + number, 1), (-1.0, -1.0), (0, 0), text, end)
        for number, (text, end) in enumerate(zip(texts, ends, strict=True))
    )
    prompt = Prompt("row:1", (1, 2), "5+7=", answer)
    return Group(Lease(0, 0, prompt, 0, 0.0), completions, Judgement(tuple(scores)))
