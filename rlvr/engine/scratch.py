"""A small Qwen3 built from nothing, with a tokenizer made from the texts that it will read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from rlvr.errors import DataError
from rlvr.recipe import Scratch

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
SPECIALS = (PAD, EOS, UNK)
VOCAB_MULTIPLE = 64


def build(spec: Scratch, texts: Iterable[str], *, path: Path, seed: int) -> Path:
    """Write a Hugging Face folder (model and tokenizer) to `path` and return it.

    The same spec, texts and seed give the same bytes. Raises DataError where `texts` holds nothing.
    """
    tokenizer = make_tokenizer(spec, list(texts))
    model = make_model(spec, vocab=len(tokenizer), pad=SPECIALS.index(PAD), eos=SPECIALS.index(EOS), seed=seed)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def make_tokenizer(spec: Scratch, texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """`char`: one token for each character that occurs; `bpe`: byte-level BPE of at most `spec.vocab` tokens.

    Ids 0, 1, 2 are padding, end and unknown. Decoding what was encoded gives the text back.
    """
    if not any(texts):
        raise DataError("a tokenizer cannot be made: the training data holds no text")
    tokenizer = _char(texts) if spec.tokenizer == "char" else _bpe(texts, spec.vocab)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        model_max_length=spec.max_len,
        clean_up_tokenization_spaces=False,
    )


def _char(texts: Sequence[str]) -> Tokenizer:
    characters = sorted(set().union(*texts))
    vocab = {token: i for i, token in enumerate((*SPECIALS, *characters))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer


def _bpe(texts: Sequence[str], vocab: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab < len(alphabet) + len(SPECIALS):
        raise DataError(
            f"model.scratch.vocab: {vocab} is too small for a byte-level tokenizer; expected at least "
            f"{len(alphabet) + len(SPECIALS)}"
        )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=list(SPECIALS), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def make_model(spec: Scratch, *, vocab: int, pad: int, eos: int, seed: int) -> Qwen3ForCausalLM:
    """Seeded float32 weights; the embedding is padded to a multiple of 64 rows."""
    config = Qwen3Config(
        vocab_size=-(-vocab // VOCAB_MULTIPLE) * VOCAB_MULTIPLE,
        hidden_size=spec.width,
        intermediate_size=spec.mlp,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        head_dim=spec.width // spec.heads,
        max_position_embeddings=spec.max_len,
        tie_word_embeddings=spec.tied,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=pad,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)
