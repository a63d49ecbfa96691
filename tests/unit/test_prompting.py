"""Prompts: template, system prompt, chat template, length."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from rlvr.errors import ConfigError, DataError
from rlvr.prompting import Prompter
from rlvr.recipe import Prompt
from rlvr.types import Task

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CHARACTERS = "".join(map(chr, range(32, 127))) + "\n"


def tokenizer(chat: str | None = None) -> PreTrainedTokenizerFast:
    vocabulary = {"<end>": 0, **{c: i + 1 for i, c in enumerate(CHARACTERS)}}
    model = Tokenizer(WordLevel(vocabulary, unk_token="<end>"))
    model.pre_tokenizer = Split("", "isolated")
    model.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<end>", pad_token="<end>")
    fast.chat_template = chat
    return fast


def task(prompt: object = "2+2=?", **fields: object) -> Task:
    return Task("t", prompt, "4", **fields)  # type: ignore[arg-type]


def test_plain_text() -> None:
    prompter = Prompter(tokenizer(), Prompt())
    ids = prompter.encode(task())
    assert ids.dtype == np.int32 and len(ids) == 5
    assert prompter.decode(ids) == "2+2=?"
    assert prompter.decode(np.append(ids, np.int32(0))) == "2+2=?"  # without the end token


def test_system_and_template_as_plain_text() -> None:
    prompt = Prompt(system="Be brief.", template="{prompt} Put it in \\boxed{}.", chat=False)
    prompter = Prompter(tokenizer(CHAT), prompt)
    assert prompter.text(task()) == "Be brief.\n\n2+2=? Put it in \\boxed{}."


def test_chat_template() -> None:
    prompter = Prompter(tokenizer(CHAT), Prompt(system="Be brief.", template="Q: {prompt}"))
    assert prompter.text(task()) == "<system>Be brief.<user>Q: 2+2=?<assistant>"
    assert prompter.decode(prompter.encode(task())) == prompter.text(task())


def test_messages_keep_their_turns_and_their_own_system_prompt() -> None:
    turns = ({"role": "system", "content": "Mine."}, {"role": "user", "content": "a"},
             {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"})  # fmt: skip
    prompter = Prompter(tokenizer(CHAT), Prompt(system="Be brief.", template="[{prompt}]"))
    assert prompter.text(task(turns)) == "<system>Mine.<user>a<assistant>b<user>[c]<assistant>"
    assert turns[3]["content"] == "c"  # the task is unchanged


def test_a_prompt_may_hold_braces() -> None:
    assert Prompter(tokenizer(), Prompt()).text(task("{x} {prompt}")) == "{x} {prompt}"


@pytest.mark.parametrize("chat", [None, CHAT])
def test_what_a_response_begins_with_stands_behind_the_prompt(chat: str | None) -> None:
    prompter = Prompter(tokenizer(chat), Prompt(max_tokens=30))
    plain, begun = prompter.encode(task()), prompter.encode(task(begun="2+2=<end>"))
    assert begun[: len(plain)].tolist() == plain.tolist()
    assert prompter.decode(begun[len(plain) :]) == "2+2=" and len(begun) == len(plain) + 4  # no end token
    with pytest.raises(DataError, match="the limit is prompt"):
        prompter.encode(task(begun="2" * 30))
    with pytest.raises(DataError, match="an end token before its end"):
        prompter.encode(task(begun="2<end>2"))


def test_length() -> None:
    prompter = Prompter(tokenizer(), Prompt(max_tokens=5))
    assert prompter.check([task(), task("1")]) == 5
    where = {"where": "mine.jsonl:3"}
    with pytest.raises(DataError, match=r"'mine', mine\.jsonl:3 \(id 't'\): .* 6 tokens, .*max_tokens=5; raise"):
        prompter.encode(task("12+2=?", source="mine", meta=where))
    with pytest.raises(DataError, match=r"and 2 more \(12 in all\)"):
        prompter.check([task("x" * 6)] * 12 + [task()])


def test_no_tokens() -> None:
    with pytest.raises(DataError, match="has no tokens"):
        Prompter(tokenizer(), Prompt()).encode(task(""))


@pytest.mark.parametrize("text", ["12", "12<end>", "12<end><end>"])
def test_a_demonstration_gets_exactly_one_end(text: str) -> None:
    prompter = Prompter(tokenizer(), Prompt())
    ids = prompter.encode_response(text)
    assert ids.dtype == np.int32 and ids.tolist() == [*prompter.encode(task("12")).tolist(), 0]


@pytest.mark.parametrize(
    ("text", "what"), [("1<end>2", "an end token before its end"), ("", "no tokens"), ("<end>", "no tokens")]
)
def test_a_demonstration_that_cannot_be_one(text: str, what: str) -> None:
    with pytest.raises(DataError, match=f"a demonstration has {what}"):
        Prompter(tokenizer(), Prompt()).encode_response(text)


def test_a_tokenizer_without_an_end_token_has_no_demonstrations() -> None:
    endless = tokenizer()
    endless.eos_token = None
    with pytest.raises(ConfigError, match="no end token"):
        Prompter(endless, Prompt()).encode_response("12")
