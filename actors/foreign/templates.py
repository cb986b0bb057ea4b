"""Check Jinja templates from outside: render them first in a process that may be killed, as they may loop.

Jinja's sandbox keeps a template from reaching anything, and limits one `range`, but not nested loops.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from actors.errors import UsageError

SECONDS = 1.0  # of CPU time to render a few short messages; templates of models need milliseconds
PATIENCE = 60.0  # wall seconds, enough for a busy machine
LONGEST = 1 << 20  # characters
_TRIAL = Path(__file__).with_name("template_trial.py")
_CHATS: Sequence[Sequence[Mapping[str, str]]] = (
    [{"role": "user", "content": "a"}],
    [{"role": "system", "content": "b"}, {"role": "user", "content": "a"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
)


def check_chat_template(template: Any, what: str) -> None:
    """Raise UsageError, naming `what`, if rendering a chat template never ends, even for short messages.

    `template` is a text, or a dict of several by name, as tokenizers have them. None and "" are fine.
    """
    texts = template.values() if isinstance(template, Mapping) else [template]
    shared = {"bos_token": "<s>", "eos_token": "</s>", "tools": None, "documents": None}
    for text in texts:
        if isinstance(text, str):
            variables = [
                {**shared, "messages": chat, "add_generation_prompt": chat[-1]["role"] == "user"} for chat in _CHATS
            ]
            _check(text, json.dumps(variables), what)


def check_judge_template(template: str, names: Sequence[str], what: str) -> None:
    """Raise UsageError, naming `what`, if rendering a template never ends, even for short texts under `names`."""
    texts = dict.fromkeys(names, "a")
    _check(template, json.dumps([{**texts, "messages": _CHATS[1]}, {**texts, "messages": None}]), what)


@lru_cache(maxsize=64)
def _check(template: str, variables: str, what: str) -> None:
    """Render `template` in a process with limits, once per item of the JSON list `variables`. Raises UsageError."""
    if len(template) > LONGEST:
        raise UsageError(f"{what} has {len(template):,} characters, of at most {LONGEST:,}; give a shorter one")
    given = {"template": template, "variables": json.loads(variables), "seconds": SECONDS}
    command = [sys.executable, "-I", str(_TRIAL)]
    try:
        code = subprocess.run(
            command, input=json.dumps(given).encode(), timeout=PATIENCE, capture_output=True, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        code = -1
    if code < 0:
        raise UsageError(
            f"{what} does not end: a few short messages took more than {SECONDS:g} s or 2 GiB of memory; look for "
            "loops in it, or use another"
        )
