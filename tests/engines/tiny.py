"""A tiny random Qwen3 as a Hugging Face folder, with a one-character tokenizer: what the engine tests run on."""

from __future__ import annotations

from pathlib import Path

PAD, EOS = 0, 1


def tiny_model(
    path: Path, *, tied: bool = True, vocab: int = 128, layers: int = 2, width: int = 64, seed: int = 0
) -> Path:
    """Save a random model (fp32) and its tokenizer below `path`; the same arguments give the same weights.

    Token 0 is padding, token 1 ends a response, token i >= 2 is the character `chr(30 + i)`. The weights are
    drawn wider than usual, so that log-probabilities differ between tokens and between models.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=vocab, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, head_dim=width // 2, max_position_embeddings=2048,
        tie_word_embeddings=tied, initializer_range=0.1, pad_token_id=PAD, eos_token_id=EOS, bos_token_id=None,
    )  # fmt: skip
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(config).float()
    torch.random.set_rng_state(state)
    model.save_pretrained(path)
    save_tokenizer(path, vocab=vocab)
    return path


def save_tokenizer(path: Path, *, vocab: int) -> None:
    """Save a tokenizer with one token per character."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": PAD, "<eos>": EOS} | {chr(30 + i): i for i in range(2, vocab)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>").save_pretrained(path)
