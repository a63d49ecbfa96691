"""Tasks to token ids, and token ids to text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from rlvr.errors import ConfigError, DataError
from rlvr.recipe import Prompt
from rlvr.rows import raise_all
from rlvr.tasks import place
from rlvr.types import I32, Task


class Prompter:
    """Wraps a transformers tokenizer with the recipe's system prompt and template."""

    def __init__(self, tokenizer: Any, prompt: Prompt) -> None:
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._chat = prompt.chat and bool(tokenizer.chat_template)

    @property
    def vocab(self) -> int:
        """Token ids that the tokenizer knows (the model may have a few more, as padding)."""
        return len(self._tokenizer)

    def text(self, task: Task) -> str:
        """The prompt as text: through the chat template, or system prompt and contents as plain paragraphs."""
        messages = messages_of(task, self._prompt)
        if self._chat:
            return self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return "\n\n".join(m["content"] for m in messages)

    def encode(self, task: Task) -> I32:
        """Prompt token ids [L], then those of `Task.begun`, which change none before them.

        Raises DataError when there are none or more than `prompt.max_tokens`, or `begun` has an end token inside.
        """
        # a chat template writes its own special tokens; plain text gets those of the tokenizer
        ids = self._tokenizer.encode(self.text(task), add_special_tokens=not self._chat)
        if not ids:
            raise DataError(f"dataset {task.source!r}, {place(task)}: the prompt has no tokens; give it some text")
        if task.begun:
            ids = [*ids, *self.encode_response(task.begun)[:-1].tolist()]  # without the end: the response goes on
        if len(ids) > self._prompt.max_tokens:
            raise DataError(
                f"dataset {task.source!r}, {place(task)}: the prompt has {len(ids)} tokens, the limit is "
                f"prompt.max_tokens={self._prompt.max_tokens}; raise the limit or leave the row out"
            )
        return np.asarray(ids, dtype=np.int32)

    @property
    def end(self) -> int:
        """The end token. Raises ConfigError where the tokenizer has none."""
        if self._tokenizer.eos_token_id is None:
            raise ConfigError("model: its tokenizer has no end token (eos_token), so no demonstration could end")
        return int(self._tokenizer.eos_token_id)

    def encode_response(self, text: str) -> I32:
        """Token ids [L] of a response that somebody else wrote, with exactly one end token, at its end.

        Raises DataError for an end token anywhere else, or no other token; ConfigError where the tokenizer has none.
        """
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        while ids and ids[-1] == self.end:
            ids = ids[:-1]
        if not ids or self.end in ids:
            what = "an end token before its end" if ids else "no tokens"
            raise DataError(f"a demonstration has {what}: {text[:60]!r}; leave it out")
        return np.asarray([*ids, self.end], dtype=np.int32)

    def decode(self, tokens: I32) -> str:
        """The text of a response, special tokens left out."""
        return self._tokenizer.decode(tokens.tolist(), skip_special_tokens=True)

    def check(self, tasks: Iterable[Task]) -> int:
        """Tokens of the longest prompt. Raises one DataError with the first ten that do not fit and their number."""
        longest = 0
        problems: list[str] = []
        for task in tasks:
            try:
                longest = max(longest, len(self.encode(task)))
            except DataError as error:
                problems.append(str(error))
        raise_all(problems)
        return longest


def messages_of(task: Task, prompt: Prompt) -> list[dict[str, str]]:
    """The messages that a task becomes, before any chat template: system prompt first, the template around the last
    user's text."""
    given = [{"role": "user", "content": task.prompt}] if isinstance(task.prompt, str) else task.prompt
    messages = [dict(m) for m in given]
    if prompt.system is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": prompt.system})
    last = next(m for m in reversed(messages) if m["role"] == "user")
    # not str.format: templates hold braces of their own, as in \boxed{}
    last["content"] = prompt.template.replace("{prompt}", last["content"])
    return messages
