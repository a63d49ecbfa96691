"""Instructions that a program can check: the 25 kinds of IFEval (Zhou et al., arXiv 2311.07911), written anew.

The gold answer is JSON as the dataset has it: `{"instruction_id_list": [...], "kwargs": [{...}, ...]}`. Only what
follows the thinking is looked at. `strict` takes it as it is; `loose` accepts it too without its first or last line, or
without asterisks (the paper's eight variants), and so forgives "Sure, here it is:".

Differs from the released checkers: languages are told by script and by frequent words (they use langdetect), sentences
end at `.`, `!` or `?` before white space (they use a longer list of abbreviations), a keyword is text and no regular
expression, and "in capitals" does not ask whether it is English too. A constraint is easily met by
nonsense: train on it beside a reward for the content.
"""

# ruff: noqa: RUF001  (letters of other scripts)

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import product
from typing import Any, Literal

from pydantic import BaseModel

from rlvr.words import did_you_mean

VERSION = "ifeval-1"
Check = Callable[..., bool]


class Config(BaseModel, extra="forbid"):
    mode: Literal["strict", "loose"] = "strict"
    partial: bool = True  # score: the fraction of instructions followed; else 1 when all are. `correct`: all


def verify(response: str, answer: str, config: Config) -> dict[str, Any]:
    """Score with the names of the instructions that were not followed."""
    text = response.rpartition("</think>")[2]
    variants = loosened(text) if config.mode == "loose" else [text]
    checks = read(answer)
    failed = [name for name, check, given in checks if not any(v.strip() and check(v, **given) for v in variants)]
    score = 1 - len(failed) / len(checks) if config.partial else float(not failed)
    detail = f"not followed: {', '.join(failed)}" if failed else ""
    return {"score": score, "correct": not failed, "parsed": bool(text.strip()), "detail": detail}


def check_answer(answer: str, config: Config) -> str | None:
    """Unknown kinds, with the closest known one, and arguments that are missing, unknown or of another type."""
    try:
        read(answer)
    except ValueError as error:
        return str(error)
    return None


@lru_cache(maxsize=4096)
def read(answer: str) -> list[tuple[str, Check, dict[str, Any]]]:
    """The checks of a gold answer. Raises ValueError with the first thing that is wrong."""
    try:
        given = json.loads(answer)
        names, kwargs = given["instruction_id_list"], given["kwargs"]
    except (ValueError, TypeError, KeyError):
        raise ValueError("expected JSON with instruction_id_list and kwargs") from None
    if not isinstance(names, list) or not isinstance(kwargs, list) or len(names) != len(kwargs) or not names:
        raise ValueError("instruction_id_list and kwargs must be lists of the same length, and not empty")
    return [_check(name, options) for name, options in zip(names, kwargs, strict=True)]


def _check(name: str, options: Mapping[str, Any] | None) -> tuple[str, Check, dict[str, Any]]:
    if name not in CHECKS:
        raise ValueError(f"unknown instruction {name!r}{did_you_mean(str(name), list(CHECKS))}")
    given = {key: value for key, value in (options or {}).items() if value is not None}
    wanted = {key: p.annotation for key, p in inspect.signature(CHECKS[name]).parameters.items() if key != "text"}
    if given.keys() != wanted.keys():
        raise ValueError(f"{name} takes {sorted(wanted) or 'no arguments'}, got {sorted(given)}")
    for key, value in given.items():
        given[key] = _typed(value, str(wanted[key]), f"{name}.{key}")
    return name, CHECKS[name], given


def _typed(value: Any, kind: str, where: str) -> Any:
    """Numbers may come as floats from a table with nulls."""
    if kind == "int" and isinstance(value, int | float) and not isinstance(value, bool) and value == int(value):
        return int(value)
    if kind == "list[str]" and isinstance(value, list) and value and all(isinstance(v, str) for v in value):
        return value
    if kind in ("str", "Relation") and isinstance(value, str):
        if kind == "Relation" and value not in RELATIONS:
            raise ValueError(f"{where} is {value!r}, expected {' or '.join(RELATIONS)}")
        if where.endswith("response_language.language") and value not in LANGUAGES:
            raise ValueError(f"{where} is {value!r}, known are {', '.join(sorted(LANGUAGES))}")
        return value
    raise ValueError(f"{where} is {value!r}, expected {kind}")


def loosened(text: str) -> list[str]:
    """The text, and it without first line, last line, both; each of the four also without asterisks."""
    lines = text.split("\n")
    cuts = [lines[first:last] for first, last in product((0, 1), (None, -1))]
    parts = ["\n".join(cut).strip() for cut in cuts]
    return [text, *parts[1:], *(part.replace("*", "") for part in (text, *parts[1:]))]


# --- the checks ----------------------------------------------------------------------------------------------

Relation = Literal["less than", "at least"]
RELATIONS = ("less than", "at least")
ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|Sr|Jr|St|vs|etc|e\.g|i\.e|Inc|Ltd|Co|[A-Z])\.$")
CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def _relates(count: int, relation: str, limit: int) -> bool:
    return count < limit if relation == "less than" else count >= limit


def keyword_existence(text: str, keywords: list[str]) -> bool:
    return all(word.lower() in text.lower() for word in keywords)


def keyword_frequency(text: str, keyword: str, frequency: int, relation: Relation) -> bool:
    return _relates(text.lower().count(keyword.strip().lower()), relation, frequency)


def forbidden_words(text: str, forbidden_words: list[str]) -> bool:
    return not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in forbidden_words)


def letter_frequency(text: str, letter: str, let_frequency: int, let_relation: Relation) -> bool:
    return _relates(text.lower().count(letter.lower()), let_relation, let_frequency)


def response_language(text: str, language: str) -> bool:
    """Most letters are of the language's script, and among those who share it no other has more frequent words."""
    script, words = LANGUAGES[language]
    letters = [c for c in text if c.isalpha()]
    if sum(bool(re.match(f"[{SCRIPTS[script]}]", c)) for c in letters) <= len(letters) / 2:
        return False
    if not words:
        return True
    said = re.findall(r"[^\s.,;:!?()\"'\u0964\u060c\u061f]+", text.lower())  # \w+ cuts Indic words in pieces
    counts = {name: sum(w in known.split() for w in said) for name, (s, known) in LANGUAGES.items() if s == script}
    return counts[language] == max(counts.values()) and counts[language] > 0


def number_sentences(text: str, num_sentences: int, relation: Relation) -> bool:
    return _relates(len(sentences(text)), relation, num_sentences)


def sentences(text: str) -> list[str]:
    """Parts that end with `.`, `!` or `?` before white space, abbreviations aside; the rest is one too."""
    found, start = [], 0
    for end in re.finditer(r"[.!?]+[\"')\]]*(?=\s|$)", text):
        part = text[start : end.end()]
        if not ABBREVIATION.search(part):
            found, start = [*found, part], end.end()
    return [part.strip() for part in (*found, text[start:]) if re.search(r"\w", part)]


def number_paragraphs(text: str, num_paragraphs: int) -> bool:
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", text)]
    inner = parts[1:-1] if len(parts) > 1 else parts
    return all(inner) and sum(map(bool, parts)) == num_paragraphs


def number_words(text: str, num_words: int, relation: Relation) -> bool:
    return _relates(len(re.findall(r"\w+", text)), relation, num_words)


def nth_paragraph_first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    parts = [part.strip() for part in re.split(r"\n\n", text) if part.strip()]
    if len(parts) != num_paragraphs or not 1 <= nth_paragraph <= len(parts):
        return False
    word = re.match(r"[^\w]*([\w'’-]*\w)?", parts[nth_paragraph - 1])
    return word is not None and (word[1] or "").lower() == first_word.lower()


def number_placeholders(text: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[[^\[\]\n]+\]", text)) >= num_placeholders


def postscript(text: str, postscript_marker: str) -> bool:
    letters = [re.escape(c) for c in re.sub(r"[^a-z]", "", postscript_marker.lower())]
    marker = r"\.?\s?".join(letters) + r"\b" if letters else re.escape(postscript_marker)
    return re.search(rf"^\W*{marker}", text.lower(), re.MULTILINE) is not None


def number_bullet_lists(text: str, num_bullets: int) -> bool:
    return len(re.findall(r"^[ \t]*(?:\*[^*\n]|-(?!-)[^\n])", text, re.MULTILINE)) == num_bullets


def constrained_response(text: str) -> bool:
    return any(option in text for option in CONSTRAINED)


def number_highlighted_sections(text: str, num_highlights: int) -> bool:
    found = re.findall(r"\*\*([^*\n]+)\*\*|\*([^*\n]+)\*", text)
    return sum(bool("".join(pair).strip()) for pair in found) >= num_highlights


def multiple_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"(?<!\w){re.escape(section_spliter.strip())}\s?\d+", text)) >= num_sections


def json_format(text: str) -> bool:
    fenced = re.fullmatch(r"\s*```(?:json)?[ \t]*\n(.*)\n?```\s*", text, re.DOTALL | re.IGNORECASE)
    try:
        json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return False
    return True


def title(text: str) -> bool:
    return any(found.strip("<> \t") for found in re.findall(r"<<([^\n]+?)>>", text))


def two_responses(text: str) -> bool:
    parts = [part.strip() for part in text.split("******")]
    inner = parts[1:-1] if len(parts) > 1 else parts
    kept = [part for part in parts if part]
    return all(inner) and len(kept) == 2 and kept[0] != kept[1]


def repeat_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(text: str) -> bool:
    return len(text.strip()) > 1 and text.strip().startswith('"') and text.strip().endswith('"')


def capital_word_frequency(text: str, capital_frequency: int, capital_relation: Relation) -> bool:
    words = re.findall(r"[^\W_][\w'’-]*", text)
    return _relates(sum(word.isupper() for word in words), capital_relation, capital_frequency)


def english_capital(text: str) -> bool:
    return text.isupper()


def english_lowercase(text: str) -> bool:
    return text.islower()


def no_comma(text: str) -> bool:
    return "," not in text


CHECKS: dict[str, Check] = {
    "keywords:existence": keyword_existence,
    "keywords:frequency": keyword_frequency,
    "keywords:forbidden_words": forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:number_words": number_words,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "punctuation:no_comma": no_comma,
}

SCRIPTS = {
    "latin": "A-Za-z\\u00c0-\\u024f\\u1e00-\\u1eff", "cyrillic": "\\u0400-\\u04ff", "arabic": "\\u0600-\\u06ff",
    "devanagari": "\\u0900-\\u097f", "bengali": "\\u0980-\\u09ff", "punjabi": "\\u0a00-\\u0a7f",
    "gujarati": "\\u0a80-\\u0aff", "tamil": "\\u0b80-\\u0bff", "telugu": "\\u0c00-\\u0c7f",
    "kannada": "\\u0c80-\\u0cff", "malayalam": "\\u0d00-\\u0d7f", "thai": "\\u0e00-\\u0e7f",
    "hebrew": "\\u0590-\\u05ff", "korean": "\\uac00-\\ud7af\\u1100-\\u11ff",
    "japanese": "\\u3040-\\u30ff\\u4e00-\\u9fff", "chinese": "\\u4e00-\\u9fff", "greek": "\\u0370-\\u03ff",
}  # fmt: skip
LANGUAGES: dict[str, tuple[str, str]] = {  # script, and frequent words where others share it
    "en": ("latin", "the of and to is in that it for was with as on are this be by not or have from you at but"),
    "es": ("latin", "el la los las de que y en un una por con para es se del al lo como más pero su sus está"),
    "pt": ("latin", "o a os as de que e em um uma por com para é se do da não no na mais mas ao seu sua são está"),
    "fr": ("latin", "le la les de des et en un une du que qui est pour dans ce il au pas sur ne se plus par avec"),
    "de": ("latin", "der die das und ist in zu den mit nicht ein eine von auf für dem es sich des im auch als wie"),
    "it": ("latin", "il la di che e un una per in con non è del della sono si da le gli i dei al come più ma lo"),
    "pl": ("latin", "i w na z się nie do to że jest o jak po co ale za od przez dla są ma oraz tym który"),
    "vi": ("latin", "và của là có một cho không được các với trong người này đã những để từ khi bạn ở"),
    "sw": ("latin", "na ya wa kwa ni katika la za kuwa hii yake cha watu wake hiyo si au kama lakini sana"),
    "fi": ("latin", "ja on ei se että hän oli mutta kun niin ovat kuin tai myös joka ole tämä sen voi mitä"),
    "nl": ("latin", "de het een en van is in op te dat die met voor niet zijn aan er ook als maar"),
    "ru": ("cyrillic", "и в не на что с по это как его из но а он она они для от за был так же все мы вы"),
    "uk": ("cyrillic", "і в не на що з це як та але його для від за є був так ми ви до у про який або"),
    "bg": ("cyrillic", "и на да не се от за в че е са с по как но това като ще си или той до при"),
    "ar": ("arabic", "في من على أن إلى هذا التي الذي هو هي ما لا عن مع كان و ذلك كل هذه قد"),
    "fa": ("arabic", "و در به از که این را با است برای آن یک می شود تا های بر خود هم یا"),
    "ur": ("arabic", "کے کی میں اور ہے سے کا کو نے پر ہیں کہ یہ ایک بھی اس ہو تھا نہیں"),
    "hi": ("devanagari", "के है में की और का से को यह हैं एक पर ने कि नहीं भी इस लिए जो था"),
    "ne": ("devanagari", "छ र को मा छन् हो यो लागि पनि भएको गर्न हुन्छ तथा एक थियो गरेको"),
    "mr": ("devanagari", "आहे आणि या ते मध्ये हे आहेत एक होते नाही तो की च्या साठी ही"),
    "bn": ("bengali", ""), "pa": ("punjabi", ""), "gu": ("gujarati", ""), "ta": ("tamil", ""), "te": ("telugu", ""),
    "kn": ("kannada", ""), "ml": ("malayalam", ""), "th": ("thai", ""), "he": ("hebrew", ""), "ko": ("korean", ""),
    "ja": ("japanese", ""), "zh": ("chinese", ""), "el": ("greek", ""),
}  # fmt: skip
