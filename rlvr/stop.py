"""SIGINT and SIGTERM while an event loop runs."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from dataclasses import dataclass, field

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Stop:
    """SIGINT and SIGTERM: the first asks the loop to save and end; before the loop, and the second time, all ends."""

    note: Callable[[str], None]
    event: asyncio.Event = field(default_factory=asyncio.Event)
    looping: bool = False

    def __enter__(self) -> Stop:
        self._main = asyncio.current_task()
        self.listen()
        return self

    def listen(self) -> None:
        """Take the signals (again: starting Ray puts a handler of its own in front, which dumps a stack and ends)."""
        for number in SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(number)
            asyncio.get_running_loop().add_signal_handler(number, self._heard)

    def __exit__(self, *_: object) -> None:
        for number in SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(number)

    def _heard(self) -> None:
        if self.looping and not self.event.is_set():
            self.note("stopping: the run is saved as soon as the update in hand is done (again: stop at once)")
            self.event.set()
        elif self._main is not None:
            self._main.cancel()
