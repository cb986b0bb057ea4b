"""One way to write and close a conversation, in the public template styles: what training, sampling and judges read.

Expected ids come from conversations written by hand and tokenised whole.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from actors.data.config import ChatTemplateConfig, DemonstrationConfig, PromptConfig
from actors.data.conversations import Conversation, closing, conversation_tokens, render, written
from actors.data.demonstrations import load_demonstrations
from actors.data.preference_layouts import MalformedPreferenceError, PreferenceRow, parse_preference
from actors.data.preferences import PreferenceTokens, preference_tokens
from actors.data.prompts import PromptSource
from actors.data.text import load_tokenizer, save_template
from actors.errors import UsageError
from actors.judges.models.inputs import ModelInputs
from actors.records import Completion, Prompt
from tests.fakes.chat_styles import STYLES, Style

USER = {"role": "user", "content": "red north"}
ANSWER = {"role": "assistant", "content": "blue gold"}
each_style = pytest.mark.parametrize("name", STYLES)


def whole_ids(style: Style, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the ids of the prompt and of the answer, both from one whole text."""
    ids = tokenizer(style.prompt + style.answer, add_special_tokens=False)["input_ids"]
    prompt = tokenizer(style.prompt, add_special_tokens=False)["input_ids"]
    assert ids[: len(prompt)] == prompt
    assert tokenizer.unk_token_id not in ids
    return prompt, ids[len(prompt) :]


def ends_of(style: Style, tokenizer: Any) -> tuple[int, ...]:
    return tuple(sorted({tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(style.end)}))


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def save(style: Style, directory: Path) -> str:
    tokenizer = style.tokenizer()
    tokenizer.save_pretrained(directory)
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": list(ends_of(style, tokenizer))}))
    return str(directory)


def completion(ids: list[int], text: str = "blue gold", *, finished: bool = True) -> Completion:
    return Completion(tuple(ids), (0.0,) * len(ids), (0,) * len(ids), text, finished)


@each_style
def test_every_path_reads_the_ids_of_the_whole_conversation(name: str, tmp_path: Path) -> None:
    style = STYLES[name]
    tokenizer = style.tokenizer()
    prompt, answer = whole_ids(style, tokenizer)
    ends = ends_of(style, tokenizer)

    source = write(tmp_path / "p.jsonl", {"prompt": [USER]})
    asked = PromptSource(PromptConfig(source=source), tokenizer).prompt(0)
    assert list(asked.token_ids) == prompt

    source = write(tmp_path / "d.jsonl", {"messages": [USER, ANSWER]})
    config = DemonstrationConfig(source=source, messages_field="messages", validation_fraction=0.0)
    assert load_demonstrations(config, tokenizer, ends).train == [(tuple(prompt), tuple(answer))]

    (pair,) = preference_tokens([PreferenceRow([USER], "blue gold", "blue sun")], tokenizer, ends)
    assert isinstance(pair, PreferenceTokens)
    assert (pair.prompt, pair.chosen) == (prompt, answer)
    other = tokenizer(style.prompt + style.answer.replace("gold", "sun"), add_special_tokens=False)["input_ids"]
    assert pair.rejected == other[len(prompt) :]

    for sequence in (pair.chosen, pair.rejected):
        assert [token for token in sequence if token in ends] == sequence[-1:]
        assert (pair.prompt + sequence).count(tokenizer.bos_token_id) == style.prompt.count("<bos>") <= 1


@each_style
def test_a_judge_reads_what_preference_training_read_whichever_end_the_policy_sampled(
    name: str, tmp_path: Path
) -> None:
    """The tokenizer's end-of-sequence differs from the end of turn: the reward was read at another token."""
    style = STYLES[name]
    path, tokenizer = save(style, tmp_path), style.tokenizer()
    (pair,) = preference_tokens([PreferenceRow([USER], "blue gold", "sun")], tokenizer, ends_of(style, tokenizer))
    assert isinstance(pair, PreferenceTokens)
    asked = Prompt("p", tuple(pair.prompt), style.prompt, metadata={"messages": [USER]})
    for end in ends_of(style, tokenizer):
        sampled = completion([*pair.chosen[:-1], end])
        for policy in (path, None):
            inputs = ModelInputs(path, policy, needs_eos=True)
            assert inputs.parts(asked, sampled) == (tuple(pair.prompt), tuple(pair.chosen))
    cut = completion(pair.chosen[:-1], finished=False)
    for policy in (path, None):
        inputs = ModelInputs(path, policy, needs_eos=True)
        assert inputs.parts(asked, cut) == (tuple(pair.prompt), tuple(pair.chosen[:-1]))


@each_style
def test_a_reward_model_reads_all_that_its_template_writes_whoever_s_vocabulary_it_has(
    name: str, tmp_path: Path
) -> None:
    style = STYLES[name]
    path, tokenizer = save(style, tmp_path), style.tokenizer()
    prompt, answer = whole_ids(style, tokenizer)
    asked = Prompt("p", tuple(prompt), style.prompt, metadata={"messages": [USER]})
    written_whole = tokenizer.apply_chat_template([USER, ANSWER], tokenize=False)
    expected = tokenizer(written_whole, add_special_tokens=False)["input_ids"]
    assert list(ModelInputs(path).sequence(asked, completion(answer))) == expected
    sampled = list(ModelInputs(path, path).sequence(asked, completion(answer)))
    assert sampled[: len(prompt)] == prompt
    assert sampled[-1] == expected[-1]
    assert sampled == tokenizer(style.prompt + style.answer + style.after, add_special_tokens=False)["input_ids"]


def test_a_template_that_opens_a_thought_for_the_policy_alone_is_trained_on_what_the_policy_writes() -> None:
    """R1: the prompt ends in `<think>`, and a rendered answer has no thought at all; every row was refused."""
    style = STYLES["r1"]
    tokenizer = style.tokenizer()
    thought = {"role": "assistant", "content": "<think>\nsun\n</think>\n\nblue gold"}
    apart = {"role": "assistant", "content": "blue gold", "reasoning_content": "sun"}
    sampled = {"role": "assistant", "content": "sun\n</think>\n\nblue gold"}
    for message in (thought, apart, sampled):
        assert written([USER], message, tokenizer, "a row") == Conversation(
            style.prompt, "sun\n</think>\n\nblue gold<eos>", is_chat=True
        )


def test_a_thought_in_a_message_of_its_own_stays_where_the_template_puts_it() -> None:
    tokenizer = STYLES["qwen3"].tokenizer()
    message = ANSWER | {"reasoning_content": "sun"}
    assert written([USER], message, tokenizer, "a row").answer == "<think>\nsun\n</think>\n\nblue gold<|im_end|>\n"


JOINS = "{{ messages | map(attribute='content') | join(' ') }}{{ '!' if add_generation_prompt }}"
CUTS = "{% for m in messages %}{{ m['content'].split('</think>')[-1] + eos_token }}{% endfor %}"


@pytest.mark.parametrize(
    ("style", "template", "chosen", "rejected", "reason"),
    [
        ("chatml", CUTS, "<think>red</think>sun", "<think>blue</think>sun", "lost_text"),
        ("chatml", CUTS, "<think>red</think>", "sun", "lost_text"),
        ("chatml", None, "red<|im_end|>blue", "sun", "lost_text"),
        ("chatml", None, "red <eos> blue", "sun", "lost_text"),
        ("llama3", None, " sun", "sun", "identical_pair"),
        ("gemma", None, "sun\n", "sun", "identical_pair"),
        ("gemma", "{{ messages[-1]['content'] }}", "sun", "red", "bad_conversation"),
        ("gemma", JOINS, "sun", "red", "bad_conversation"),
    ],
)
def test_tokens_that_are_not_what_was_written_are_a_malformed_row(
    style: str, template: str | None, chosen: str, rejected: str, reason: str
) -> None:
    """Equal pairs and empty responses were kept: the check read texts, and the template cut them."""
    tokenizer = STYLES[style].tokenizer()
    if template is not None:
        tokenizer.chat_template = template
    ends = ends_of(STYLES[style], tokenizer)
    (found,) = preference_tokens([PreferenceRow([USER], chosen, rejected)], tokenizer, ends)
    assert isinstance(found, MalformedPreferenceError)
    assert found.reason == reason


def test_a_template_that_leaves_out_what_the_system_says_is_a_malformed_prompt(tmp_path: Path) -> None:
    tokenizer = STYLES["r1"].tokenizer()
    source = write(tmp_path / "p.jsonl", {"prompt": [{"role": "system", "content": "gold"}, USER]})
    with pytest.raises(UsageError, match=r"p\.jsonl:1: .* leaves out text of a system message, 'gold'"):
        PromptSource(PromptConfig(source=source), tokenizer)


def test_text_that_follows_a_prompt_gains_no_space_and_text_prompts_no_second_bos() -> None:
    tokenizer = STYLES["gemma"].tokenizer()
    for prompt, adds in (("red north", True), ("<bos>red north", False)):
        (tokens,) = conversation_tokens([Conversation(prompt, "gold")], tokenizer)
        assert isinstance(tokens, tuple)
        whole = tokenizer(f"{prompt}gold", add_special_tokens=adds)["input_ids"]
        assert [*tokens[0], *tokens[1]] == [*whole, tokenizer.eos_token_id]
        assert whole.count(tokenizer.bos_token_id) == 1


def test_what_closes_an_answer_is_the_last_of_what_the_template_writes_or_its_first_end() -> None:
    style = STYLES["phi"]
    tokenizer = style.tokenizer()
    end, line, eos = tokenizer("<|end|>\n<eos>", add_special_tokens=False)["input_ids"]
    assert closing(tokenizer, (end, eos), chat=True) == [end]
    assert closing(tokenizer, (end, eos), chat=True, whole=True) == [end, line, eos]
    assert closing(tokenizer, (end, eos), chat=False) == [eos]


def own(**settings: Any) -> ChatTemplateConfig:
    return ChatTemplateConfig.model_validate(settings)


def test_variables_of_a_template_reach_every_reader_and_the_saved_model(tmp_path: Path) -> None:
    chats = own(chat_template_kwargs={"enable_thinking": False})
    path = save(STYLES["qwen3"], tmp_path)
    for saved in (False, True):
        if saved:
            save_template(chats, tmp_path)
        tokenizer = load_tokenizer(path, chats=None if saved else chats)
        found = written([USER], ANSWER, tokenizer, "a row")
        assert found.prompt == STYLES["qwen3"].prompt + "<think>\n\n</think>\n\n"
        assert found.answer == "blue gold<|im_end|>\n"
    again = load_tokenizer(path, chats=own(chat_template_kwargs={"enable_thinking": True}))
    assert written([USER], ANSWER, again, "a row").prompt == STYLES["qwen3"].prompt, "what is set later counts"
    lost = [PreferenceRow([USER], "<think>\nsun\n</think>\n\nred", "red")]
    (error,) = preference_tokens(lost, tokenizer)
    assert isinstance(error, MalformedPreferenceError)
    assert error.reason == "lost_text"


def test_a_template_of_one_s_own_is_text_or_a_file(tmp_path: Path) -> None:
    path, style = save(STYLES["llama3"], tmp_path), STYLES["zephyr"]
    (tmp_path / "mine.jinja").write_text(style.template)
    for given in (style.template, str(tmp_path / "mine.jinja")):
        found = written([USER], ANSWER, load_tokenizer(path, chats=own(chat_template=given)), "a row")
        assert (found.prompt, found.answer) == (style.prompt, style.answer + "\n")
    save_template(own(), tmp_path)
    assert load_tokenizer(path).chat_template == STYLES["llama3"].template


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chat_template": "nowhere.jinja"}, r"neither Jinja text, .* nor a file that can be read"),
        ({"chat_template_kwargs": {"enable_thinkin": True}}, "sets 'enable_thinkin', which the chat template does not"),
        ({"chat_template": "{% if %}"}, "cannot write a user's message: line 1: .*; correct it"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_with_its_setting(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = save(STYLES["qwen3"], tmp_path)
    with pytest.raises(UsageError, match=message):
        written([USER], ANSWER, load_tokenizer(path, chats=own(**settings)), "a row")


def test_variables_that_are_not_the_template_s_own_are_refused() -> None:
    for name in ("messages", "no name"):
        with pytest.raises(ValueError, match="cannot be set"):
            own(chat_template_kwargs={name: 1})


def test_variables_keep_a_template_s_first_line_and_values_of_every_json_type(tmp_path: Path) -> None:
    path = save(STYLES["qwen3"], tmp_path)
    values = {"a": None, "b": True, "c": 1.5, "d": "it's\n\"", "e": [1, {"x": "y"}]}
    template = "\n{{ messages[0].content }} {{ [a, b, c, d, e] }}"
    tokenizer = load_tokenizer(path, chats=own(chat_template=template, chat_template_kwargs=values))
    assert render([USER], tokenizer, "a row") == f"\nred north {list(values.values())!r}"


CALLING = {"role": "assistant", "tool_calls": [{"function": {"name": "sun", "arguments": {"x": "red"}}}]}
TOOLS = [{"name": "north"}]


def tokenizer_with_tools(*, calls: bool = True) -> Any:
    tokenizer = STYLES["chatml"].tokenizer()
    call = "{% for c in m.tool_calls or [] %}{{ c.function.name + c.function.arguments.x }}{% endfor %}"
    tokenizer.chat_template = (
        "{% if tools %}{{ tools[0].name }} {% endif %}{% for m in messages %}{{ m.content }}"
        + (call if calls else "")
        + "<|im_end|>{% endfor %}"
    )
    return tokenizer


def test_tools_and_tool_calls_reach_the_template(tmp_path: Path) -> None:
    tokenizer = tokenizer_with_tools()
    rows: dict[str, Any] = {"messages": [USER, CALLING, {"role": "tool", "content": "gold"}, ANSWER], "tools": TOOLS}
    config = DemonstrationConfig(
        source=write(tmp_path / "d.jsonl", rows), messages_field="messages", validation_fraction=0.0
    )
    ends = ends_of(STYLES["chatml"], tokenizer)
    found = [(tokenizer.decode(p), tokenizer.decode(r)) for p, r in load_demonstrations(config, tokenizer, ends).train]
    first = "north red north<|im_end|>"
    assert found == [
        (first, "sunred<|im_end|>"),
        (f"{first}sunred<|im_end|>gold<|im_end|>", "blue gold<|im_end|>"),
    ]
    rows["tools"] = json.dumps(rows["tools"])
    source = write(tmp_path / "d.jsonl", rows)
    again = load_demonstrations(config.model_copy(update={"source": source}), tokenizer, ends).train
    assert [tokenizer.decode(prompt) for prompt, _ in again] == [prompt for prompt, _ in found]
    rows["tools"] = "no JSON"
    source = write(tmp_path / "d.jsonl", rows)
    with pytest.raises(UsageError, match="field 'tools' is a string that cannot be read as JSON"):
        load_demonstrations(config, tokenizer, ends)


def test_a_preference_with_tool_calls_has_the_tokens_of_its_conversations(tmp_path: Path) -> None:
    tokenizer = tokenizer_with_tools()
    ends = ends_of(STYLES["chatml"], tokenizer)
    called = [USER, CALLING, {"role": "tool", "content": "gold"}]
    rows = [
        parse_preference({"prompt": [USER], "chosen": [CALLING], "rejected": [ANSWER], "tools": TOOLS}),
        parse_preference({"chosen": [*called, ANSWER], "rejected": [*called, CALLING]}),
    ]
    found = preference_tokens(rows, tokenizer, ends)
    assert [[tokenizer.decode(part) for part in (each.prompt, each.chosen, each.rejected)] for each in found] == [
        ["north red north<|im_end|>", "sunred<|im_end|>", "blue gold<|im_end|>"],
        ["red north<|im_end|>sunred<|im_end|>gold<|im_end|>", "blue gold<|im_end|>", "sunred<|im_end|>"],
    ]
    lost = [each.reason for each in preference_tokens(rows, tokenizer_with_tools(calls=False), ends)]
    assert lost == ["lost_text", "lost_text"]


def test_tools_beside_a_text_are_refused_everywhere(tmp_path: Path) -> None:
    tokenizer = tokenizer_with_tools()
    source = write(tmp_path / "d.jsonl", {"prompt": "red", "response": "blue", "tools": TOOLS})
    with pytest.raises(UsageError, match="'tools' stands beside a text"):
        load_demonstrations(DemonstrationConfig(source=source, validation_fraction=0.0), tokenizer)
    with pytest.raises(UsageError, match="'tools' stands beside a text"):
        PromptSource(PromptConfig(source=source), tokenizer)


def test_a_judge_s_template_shows_the_tools_that_the_policy_saw(tmp_path: Path) -> None:
    path = str(tmp_path / "judge")
    tokenizer_with_tools().save_pretrained(path)
    source = write(tmp_path / "p.jsonl", {"prompt": [USER], "tools": TOOLS})
    prompt = PromptSource(PromptConfig(source=source), tokenizer_with_tools()).prompt(0)
    completion = Completion((1, 2), (0.0, 0.0), (0, 0), "blue gold", finished=True)
    inputs = ModelInputs(path)
    tokenizer = tokenizer_with_tools()
    assert tokenizer.decode(inputs.sequence(prompt, completion)) == "north red north<|im_end|>blue gold<|im_end|>"
    assert tokenizer.decode(inputs.parts(prompt, completion)[0]) == "north red north<|im_end|>"


def test_a_judge_reads_even_what_would_be_a_malformed_row(tmp_path: Path) -> None:
    """A policy samples what it likes: a run must not end at an answer that no data may hold."""
    path, tokenizer = save(STYLES["r1"], tmp_path), STYLES["r1"].tokenizer()
    system = {"role": "system", "content": "gold"}
    asked = Prompt("p", (1, 2), "", metadata={"messages": [system, USER]})
    inputs = ModelInputs(path, needs_eos=True)
    for text, answer in (("", "\n</think>\n\n<eos>"), ("sun</think>", "sun\n</think>\n\n<eos>"), ("a<eos>b", None)):
        before, after = inputs.parts(asked, completion([5, 1], text))
        assert tokenizer.decode(before) == STYLES["r1"].prompt
        assert after[-1] == tokenizer.eos_token_id
        assert answer is None or tokenizer.decode(after) == answer
