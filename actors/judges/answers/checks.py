"""Check the instructions of IFEval that a rule can check: an instruction's arguments give a check of an answer.

Source: Zhou et al. 2023, arXiv 2311.07911, appendix, and the arguments of its public data. Rules need no library:
words are runs of letters, digits and underscores. Sentences end with a period, question or exclamation mark before a
space or the end, unless it belongs to a common abbreviation or an initial. So counts of sentences can differ a little
from NLTK's.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

Check = Callable[[str], bool]

UNSUPPORTED: dict[str, str] = {"language:response_language": "telling languages apart needs a model"}
"""Instructions that no rule here can check, with the reason."""

CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_ABBREVIATION = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|e\.g|i\.e|[A-Z]))\.$")
_SENTENCE_END = re.compile(r"(?<![.!?])[.!?]+[\"')\]*]*(?=\s|$)")


def _compare(relation: str | None, limit: int) -> Callable[[int], bool]:
    """Return a test of a count: `at least` or `less than` the limit."""
    if relation not in ("at least", "less than"):
        raise ValueError(f"relation {relation!r} is neither 'at least' nor 'less than'")
    return (lambda count: count >= limit) if relation == "at least" else (lambda count: count < limit)


def words(text: str) -> list[str]:
    """Return the words of a text."""
    return re.findall(r"\w+", text)


def sentences(text: str) -> int:
    """Count sentences; text after the last mark is one more."""
    start, count = 0, 0
    for match in _SENTENCE_END.finditer(text):
        if match[0][0] == "." and _ABBREVIATION.search(text[max(0, match.start() - 6) : match.start() + 1]):
            continue
        count += bool(words(text[start : match.start()]))
        start = match.end()
    return count + bool(words(text[start:]))


def _contains(text: str, phrase: str) -> bool:
    return re.search(re.escape(phrase), text, re.IGNORECASE) is not None


def existence(keywords: Sequence[str]) -> Check:
    """Expect every keyword, in any case, within words too."""
    return lambda text: all(_contains(text, keyword) for keyword in keywords)


def forbidden_words(forbidden_words: Sequence[str]) -> Check:
    """Expect none of the words as a whole word, in any case."""
    patterns = [re.compile(rf"\b{re.escape(word)}\b", re.IGNORECASE) for word in forbidden_words]
    return lambda text: not any(pattern.search(text) for pattern in patterns)


def frequency(keyword: str, frequency: int, relation: str) -> Check:
    """Expect a keyword this often, in any case, within words too."""
    fits = _compare(relation, int(frequency))
    return lambda text: fits(len(re.findall(re.escape(keyword.strip()), text, re.IGNORECASE)))


def letter_frequency(letter: str, let_frequency: int, let_relation: str) -> Check:
    """Expect a letter this often, in any case."""
    fits, wanted = _compare(let_relation, int(let_frequency)), letter.strip().lower()
    if len(wanted) != 1:
        raise ValueError(f"{letter!r} is not one letter")
    return lambda text: fits(text.lower().count(wanted))


def number_words(num_words: int, relation: str) -> Check:
    """Expect this many words."""
    fits = _compare(relation, int(num_words))
    return lambda text: fits(len(words(text)))


def number_sentences(num_sentences: int, relation: str) -> Check:
    """Expect this many sentences."""
    fits = _compare(relation, int(num_sentences))
    return lambda text: fits(sentences(text))


def number_paragraphs(num_paragraphs: int) -> Check:
    """Expect this many paragraphs, separated by the line ***. Only the first and the last may be empty."""

    def check(text: str) -> bool:
        parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", text)]
        if not all(parts[1:-1]):
            return False
        return sum(map(bool, parts)) == int(num_paragraphs)

    return check


def nth_paragraph_first_word(num_paragraphs: int, nth_paragraph: int, first_word: str) -> Check:
    """Expect this many paragraphs, separated by empty lines, and a first word of the n-th, in any case."""
    count, place, wanted = int(num_paragraphs), int(nth_paragraph), first_word.lower()

    def check(text: str) -> bool:
        parts = re.split(r"\n\n", text)
        if sum(bool(part.strip()) for part in parts) != count or not 1 <= place <= len(parts):
            return False
        paragraph = parts[place - 1].strip()
        first = re.match(r"[^\s.,?!'\"]*", paragraph.split()[0].lstrip("'\"")) if paragraph else None
        return first is not None and first[0].lower() == wanted

    return check


def number_placeholders(num_placeholders: int) -> Check:
    """Expect at least this many placeholders in square brackets, such as [name]."""
    return lambda text: len(re.findall(r"\[[^\[\]]*\]", text)) >= int(num_placeholders)


def postscript(postscript_marker: str) -> Check:
    """Expect a line with the marker, such as P.S., in any case; spaces within P. P. S. do not matter."""
    marker = postscript_marker.strip().lower()
    known = {"p.s.": r"\bp\.\s?s\.", "p.p.s": r"\bp\.\s?p\.\s?s"}
    pattern = re.compile(known.get(marker, re.escape(marker)), re.IGNORECASE)
    return lambda text: pattern.search(text) is not None


def number_bullet_lists(num_bullets: int) -> Check:
    """Expect exactly this many bullet points: lines that start with * or -."""
    return lambda text: len(re.findall(r"^[ \t]*(?:\*[^*\n]|-)", text, re.MULTILINE)) == int(num_bullets)


def number_highlighted_sections(num_highlights: int) -> Check:
    """Expect at least this many sections highlighted by *one* or **two** asterisks."""

    def check(text: str) -> bool:
        double = [part for part in re.findall(r"\*\*([^\n*]+)\*\*", text) if part.strip()]
        single = [part for part in re.findall(r"\*([^\n*]+)\*", re.sub(r"\*\*[^\n*]+\*\*", "", text)) if part.strip()]
        return len(double) + len(single) >= int(num_highlights)

    return check


def multiple_sections(section_spliter: str, num_sections: int) -> Check:
    """Expect at least this many sections that start with the splitter and a number, as in SECTION 1."""
    pattern = re.compile(rf"\s?{re.escape(section_spliter.strip())}\s?\d+\s?")
    return lambda text: len(pattern.findall(text)) >= int(num_sections)


def title() -> Check:
    """Expect a title in double angular brackets, such as <<Joy>>."""

    def check(text: str) -> bool:
        return any(
            line[max(line.find("<<"), 0) : line.rfind(">>") + 1].strip("<> ")
            for line in text.split("\n")
            if "<<" in line
        )

    return check


def json_format() -> Check:
    """Expect JSON alone, in a code block or not."""

    def check(text: str) -> bool:
        plain = re.sub(r"^```(?:json)?|```$", "", text.strip(), flags=re.IGNORECASE).strip()
        try:
            json.loads(plain)
        except (ValueError, RecursionError):
            return False
        return True

    return check


def constrained_response() -> Check:
    """Expect one of the three answers of the paper."""
    return lambda text: any(option in text for option in CONSTRAINED)


def capital_word_frequency(capital_frequency: int, capital_relation: str) -> Check:
    """Expect this many words in capitals only."""
    fits = _compare(capital_relation, int(capital_frequency))
    return lambda text: fits(sum(word.isupper() for word in re.findall(r"\w+(?:[-']\w+)*", text)))


def english_capital() -> Check:
    """Expect capital letters only."""
    return str.isupper


def english_lowercase() -> Check:
    """Expect small letters only."""
    return str.islower


def no_comma() -> Check:
    """Expect no comma."""
    return lambda text: "," not in text


def end_checker(end_phrase: str) -> Check:
    """Expect a phrase at the very end, in any case; quotation marks around the answer do not matter."""
    return lambda text: text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation() -> Check:
    """Expect the whole answer between double quotation marks."""
    return lambda text: len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] == '"'


def repeat_prompt(prompt_to_repeat: str) -> Check:
    """Expect the request at the start, word for word, in any case."""
    return lambda text: text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def two_responses() -> Check:
    """Expect two different answers separated by six asterisks."""

    def check(text: str) -> bool:
        parts = text.split("******")
        found = [part.strip() for part in parts if part.strip()]
        return all(part.strip() for part in parts[1:-1]) and len(found) == 2 and found[0] != found[1]

    return check


_GROUPS: dict[str, Sequence[Callable[..., Check]]] = {
    "keywords": (existence, forbidden_words, frequency, letter_frequency),
    "length_constraints": (number_words, number_sentences, number_paragraphs, nth_paragraph_first_word),
    "detectable_content": (number_placeholders, postscript),
    "detectable_format": (
        number_bullet_lists,
        number_highlighted_sections,
        multiple_sections,
        title,
        json_format,
        constrained_response,
    ),
    "change_case": (capital_word_frequency, english_capital, english_lowercase),
    "punctuation": (no_comma,),
    "startend": (end_checker, quotation),
    "combination": (repeat_prompt, two_responses),
}
CHECKS: dict[str, Callable[..., Any]] = {
    f"{group}:{check.__name__}": check for group, checks in _GROUPS.items() for check in checks
}
"""Functions from an instruction's arguments to a check of an answer, by the instruction's name."""
