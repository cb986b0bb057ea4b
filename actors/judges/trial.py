"""Try a judge before a run needs it: let it judge two made-up completions of a real prompt."""

import asyncio
from dataclasses import replace
from typing import Any

from actors.errors import OffbeatError, UsageError
from actors.judges.config import JudgeKind, JudgingConfig, ModelJudgeConfig
from actors.judges.factory import make_judge
from actors.judges.functions.judge import FunctionJudge
from actors.judges.protocol import JudgeTimeoutError, closing, judge_in_time
from actors.records import Completion, Group, Judgement, Lease, Prompt
from actors.user_code import UserCodeError

TEXTS = ("Yes.", "I would rather not say, and so this answer is longer than the other one.")


def trial_group(prompt: Prompt, tokenizer: Any, *, conversations: bool = False) -> Group:
    """Make a group of two finished completions, the gold answer first if the prompt has one.

    With `conversations`, each completion is a conversation of a single message.
    """
    completions = [_completion(text, tokenizer) for text in (prompt.answer or TEXTS[0], TEXTS[1])]
    if conversations:
        completions = [replace(each, messages=(("assistant", each.text),)) for each in completions]
    return Group(Lease(-1, 0, prompt, 0, 0.0), tuple(completions))


def meet(judge: JudgeKind, judging: JudgingConfig, group: Group, tokenizer: str | None) -> str:
    """Make the judge of `judge`, let it judge `group` once, and describe its answer; `tokenizer` as in `make_judge`.

    Raises UsageError with the cause if the judge cannot be made, fails, gives no usable answer, or takes longer than
    `judging.timeout_seconds`.
    """
    name = name_of(judge)
    try:
        with closing(make_judge(judge, tokenizer)) as made:
            answers = asyncio.run(judge_in_time(made, [group], judging.timeout_seconds))
    except UsageError:
        raise
    except UserCodeError as error:
        raise UsageError(f"{error}\n{error.trace}\ncorrect the function; nothing was started") from error
    except JudgeTimeoutError as error:
        raise UsageError(
            f"judge {name} did not judge two completions within judging.timeout_seconds {judging.timeout_seconds:g}; "
            "make it faster or raise the limit"
        ) from error
    except OffbeatError as error:
        raise UsageError(f"judge {name} cannot judge a first prompt: {error}") from error
    except Exception as error:
        raise UsageError(f"judge {name} cannot judge a first prompt: {type(error).__name__}: {error}") from error
    (answer,) = answers
    if isinstance(answer, OffbeatError):
        raise UsageError(f"judge {name} cannot judge a first prompt: {answer}") from answer
    signature = f", called as {made.signature}" if isinstance(made, FunctionJudge) else ""
    return f"judge {name}{signature}: {_described(answer, _range(judge))}"


def check_model_inputs(judge: ModelJudgeConfig, group: Group, tokenizer: str | None) -> None:
    """Check that a judge's tokenizer can write the prompts, and that a reward model has one label. Loads no model.

    Raises UsageError if not.
    """
    from actors.hub import read_config, resolve
    from actors.judges.models.inputs import ModelInputs

    directory = resolve(judge.path, weights=False)
    config = read_config(directory)
    inputs = ModelInputs(judge.path, tokenizer, needs_eos=judge.kind == "preference_model")
    if judge.kind == "reward_model" and config.num_labels != 1:
        raise UsageError(
            f"judging.judge.path {judge.path} has {config.num_labels} labels (num_labels in its config.json); a reward "
            "model has exactly 1"
        )
    chats = "messages" in group.lease.prompt.metadata
    if chats and not inputs.has_template and not inputs.same_vocabulary:
        raise UsageError(
            f"the prompts are chats, and the tokenizer of judging.judge.path {judge.path} has no chat template; use a "
            "judge that was trained on chats, or give prompts as strings"
        )
    for completion in group.completions:
        inputs.sequence(group.lease.prompt, completion)
        if judge.kind == "preference_model":
            inputs.parts(group.lease.prompt, completion)


def name_of(judge: JudgeKind) -> str:
    """Return a judge's name for messages: its kind, with its path or model if it has one."""
    what = getattr(judge, "path", None) or getattr(judge, "model", None)
    return judge.kind if what is None else f"{judge.kind} {what}"


def _completion(text: str, tokenizer: Any) -> Completion:
    try:
        ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    except Exception:  # the tokenizers library raises the bare class for words that it does not know
        ids = ()
    ids = (*ids, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])) or (0,)
    return Completion(ids, (0.0,) * len(ids), (0,) * len(ids), text, finished=True)


def _range(judge: JudgeKind) -> str:
    """Describe the range of a judge's scores in words."""
    if judge.kind in ("verifier", "code", "instructions"):
        return "from 0 to 1"
    return "from {:g} to {:g}".format(*judge.scale) if judge.kind == "endpoint" else "of any size"


def _described(judgement: Judgement, size: str) -> str:
    if judgement.preferences is not None:
        return f"prefers the first of 2 completions with probability {judgement.preferences[0][1]:.3g}"
    scores = " and ".join(f"{score:.6g}" for score in judgement.scores)
    return f"2 completions, scores {scores} ({size}; the higher is the better)"
