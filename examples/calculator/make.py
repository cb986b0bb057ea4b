"""Write what the calculator example needs: a small model with a chat template, demonstrations, and prompts.

    python -m examples.calculator.make [DIRECTORY]

The sums are stories with two operations, like the shortest of GSM8K. Half of the demonstrations are asked to use the
calculator, and do. Of the others an eighth does; the rest guess a round number. Nobody asks in the prompts: the policy
that imitates the demonstrations knows how to use the calculator, and seldom does.
"""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gwen", "Hugo")
THINGS = ("apples", "books", "coins", "stamps", "eggs", "shells", "cards", "pens")
STORIES = (
    ("{name} has {a} {things}, buys {b} more and gives {c} away. How many {things} are left?", "{a}+{b}-{c}"),
    ("{name} fills {a} boxes with {b} {things} each and keeps {c} besides. How many {things}?", "{a}*{b}+{c}"),
    ("Each of {a} friends brings {b} {things}; {name} takes {c} of them. How many {things} remain?", "{a}*{b}-{c}"),
    ("{name} buys {a} {things} in the morning and {b} at noon, {c} days in a row. How many in all?", "({a}+{b})*{c}"),
)
ASK = " Use the calculator."
UNASKED_SHARE = 1 / 8  # of the demonstrations that are not asked to
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ {'user': 'Q: ', 'assistant': 'A: ', 'tool': '= '}[message.role] }}{{ message.content }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
)


def sums(seed: int) -> Iterator[tuple[str, str, int]]:
    """Yield questions, their expressions and values, without end. The same seed gives the same sums."""
    rng = random.Random(seed)
    while True:
        story, expression = rng.choice(STORIES)
        a, b, c = rng.randint(12, 99), rng.randint(12, 99), rng.randint(2, 11)
        filled = expression.format(a=a, b=b, c=c)
        question = story.format(name=rng.choice(NAMES), things=rng.choice(THINGS), a=a, b=b, c=c)
        yield question, filled, eval(filled)  # our own digits and operators


def demonstration(question: str, expression: str, value: int, rng: random.Random) -> list[dict[str, str]]:
    """Answer a question: with the calculator if asked to, and seldom if not; else by a guess."""
    asked = rng.random() < 0.5
    messages = [{"role": "user", "content": question + ASK * asked}]
    if asked or rng.random() < UNASKED_SHARE:
        messages.append({"role": "assistant", "content": f"<calc>{expression}</calc>"})
        messages.append({"role": "tool", "content": str(value)})
        return [*messages, {"role": "assistant", "content": f"#### {value}"}]
    size = 10 ** (len(str(value)) - 1)
    return [*messages, {"role": "assistant", "content": f"#### {rng.randint(1, 9) * size}"}]


def make(directory: Path, demonstrations: int = 8000, prompts: int = 4000) -> None:
    """Write `model`, `demonstrations.jsonl` and `prompts.jsonl`; no question is in both files."""
    from transformers import AutoTokenizer

    from learner.stages.config import ScratchConfig
    from learner.stages.scratch import make_model

    rng, stream, seen = random.Random(0), sums(seed=1), set[str]()
    shown, asked = [], []
    while len(asked) < prompts:
        question, expression, value = next(stream)
        if question in seen:
            continue
        seen.add(question)
        if len(shown) < demonstrations:
            shown.append({"messages": demonstration(question, expression, value, rng)})
        else:
            asked.append({"prompt": [{"role": "user", "content": question}], "answer": f"#### {value}"})
    directory.mkdir(parents=True, exist_ok=True)
    texts = (message["content"] for row in shown for message in row["messages"])
    make_model(directory / "model", texts, ScratchConfig(vocabulary=400, layers=4, heads=4, max_tokens=128))
    tokenizer = AutoTokenizer.from_pretrained(directory / "model")
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(directory / "model")
    _write(directory / "demonstrations.jsonl", shown)
    _write(directory / "prompts.jsonl", asked)


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    make(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/calculator-data"))
