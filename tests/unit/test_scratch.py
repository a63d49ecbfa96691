"""Small models from nothing: the tokenizers, and the same bytes for the same inputs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr.engine.scratch import build, make_tokenizer
from rlvr.errors import DataError
from rlvr.recipe import Scratch

TEXTS = ["3+4*2=?", "3+8=11\n", "Where? There: <b>\u00e9</b>  two  spaces", "<eos> is a word here"]
CHAR = Scratch(layers=1, width=16, heads=2, kv_heads=1, mlp=32, max_len=32)
BPE = CHAR.model_copy(update={"tokenizer": "bpe", "vocab": 300})


@pytest.fixture(scope="module", params=[CHAR, BPE], ids=["char", "bpe"])
def tokenizer(request: pytest.FixtureRequest):
    return make_tokenizer(request.param, TEXTS)


def test_specials_are_distinct_and_first(tokenizer) -> None:
    assert [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id] == [0, 1, 2]


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet=sorted(set("".join(TEXTS[:3]))), max_size=30))
def test_text_comes_back(tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text or "<" in text  # "<eos>" is the end token


def test_char_tokens_are_characters() -> None:
    tokenizer = make_tokenizer(CHAR, TEXTS[:2])
    assert len(tokenizer) == 3 + len(set("".join(TEXTS[:2])))
    assert len(tokenizer.encode("3+4*2=?")) == 7
    assert tokenizer.encode("3z") == [tokenizer.encode("3")[0], tokenizer.unk_token_id]


def test_bpe_knows_every_byte_and_learns_merges() -> None:
    tokenizer = make_tokenizer(BPE, ["the then there"] * 50)
    assert tokenizer.decode(tokenizer.encode("unseen: \u4e2d\U0001f600")) == "unseen: \u4e2d\U0001f600"
    assert len(tokenizer.encode("the")) == 1
    with pytest.raises(DataError, match=r"model\.scratch\.vocab: 100 is too small"):
        make_tokenizer(BPE.model_copy(update={"vocab": 100}), TEXTS)


def test_no_text_is_an_error() -> None:
    with pytest.raises(DataError, match="holds no text"):
        make_tokenizer(CHAR, ["", ""])


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    digests = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        folder = build(CHAR, iter(TEXTS), path=tmp_path / name, seed=seed)
        digests.append({f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir()})
    assert digests[0] == digests[1]
    assert {name for name in digests[0] if digests[0][name] != digests[2][name]} == {"model.safetensors"}
    assert torch.equal(torch.random.get_rng_state(), before)  # no global random state


def test_transformers_loads_it(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = build(CHAR, TEXTS, path=tmp_path / "m", seed=0)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size % 64 == 0 and model.config.tie_word_embeddings
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.decode(tokenizer.encode("3+4 * 2=?")) == "3+4 * 2=?"
