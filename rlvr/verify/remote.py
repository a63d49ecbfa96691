"""Tests on one side, the program on the other: two locked-in processes that exchange plain values.

What tests `assert` must be judged where the program cannot reach. So the program runs in a process of its own,
and the tests see a stand-in for each of its functions. Arguments and results cross as data of exact built-in types;
an object of the program's own class stays where it is, and its stand-in is equal to itself alone, so a forged
`__eq__` is never asked. Standard library alone.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import itertools
import json
import math
import os
import socket
import struct
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

FRAME = 64 << 20  # bytes of one message
ITEMS = 200_000  # of an iterator that crosses
Value = Any


class Remote(Exception):
    """An exception of the other side that is not a built-in one."""


class Unsupported(TypeError):
    """A test hands over something that cannot cross."""


class Lost(ConnectionError):
    """The other process has ended."""


class StandIn:
    """An object that lives on the other side. Its behaviour is asked for; its identity alone is known here."""

    __slots__ = ("_id", "_peer")

    def __init__(self, peer: Peer, number: int) -> None:
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_id", number)

    def __call__(self, *args: Value, **named: Value) -> Value:
        return self._peer.ask("call", self._id, args, named)

    def __getattr__(self, name: str) -> Value:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._peer.ask("get", self._id, (name,), {})

    def __setattr__(self, name: str, value: Value) -> None:
        self._peer.ask("set", self._id, (name, value), {})

    def __len__(self) -> int:
        return int(self._peer.ask("len", self._id, (), {}))

    def __getitem__(self, key: Value) -> Value:
        return self._peer.ask("item", self._id, (key,), {})

    def __iter__(self) -> Iterator[Value]:
        return iter(self._peer.ask("list", self._id, (), {}))

    def __str__(self) -> str:
        return str(self._peer.ask("str", self._id, (), {}))

    def __repr__(self) -> str:
        return str(self._peer.ask("repr", self._id, (), {}))


OPERATIONS: dict[str, Callable[..., Value]] = {
    "get": getattr, "set": setattr, "len": len, "item": lambda o, k: o[k], "str": str, "repr": repr,
    "list": lambda o: list(itertools.islice(iter(o), ITEMS)), "call": lambda o, *a, **k: o(*a, **k),
}  # fmt: skip


class Peer:
    """One end of the link. Each side can call what the other has handed to it; `calls_only` allows nothing else."""

    def __init__(self, link: socket.socket, *, calls_only: bool) -> None:
        self._link, self._calls_only = link, calls_only
        self._objects: dict[int, Value] = {}
        self._numbers: dict[int, int] = {}
        self._stand_ins: dict[int, StandIn] = {}

    def ask(self, what: str, number: int, args: tuple[Value, ...], named: dict[str, Value]) -> Value:
        """Let the other side do something. Where it returns None, what it did to `args` is done here too."""
        self._send({"do": what, "of": number, "args": [self.pack(a) for a in args], "named": self.pack(named)})
        while "do" in (reply := self._receive()):
            self._answer(reply)
        if "error" in reply:
            raise _exception(*reply["error"])
        value = self.unpack(reply["value"])
        if (
            value is None
        ):  # it worked in place; a function that returns something must not change what it is compared with
            for mine, theirs in zip(args, reply["args"], strict=True):
                _copy_into(mine, self.unpack(theirs))
        return value

    def serve(self) -> None:
        """Answer until the other side ends."""
        try:
            while True:
                self._answer(self._receive())
        except Lost:
            return

    def offer(self, value: Value) -> int:
        """The number under which the other side knows an object."""
        if id(value) not in self._numbers:
            number = len(self._objects)
            self._objects[number], self._numbers[id(value)] = value, number
        return self._numbers[id(value)]

    def _answer(self, request: Mapping[str, Any]) -> None:
        args: list[Value] = []
        try:
            if self._calls_only and request["do"] != "call":
                raise Unsupported(f"{request['do']} is not offered here")
            args = [self.unpack(a) for a in request["args"]]
            value = OPERATIONS[request["do"]](self._objects[request["of"]], *args, **self.unpack(request["named"]))
            reply: dict[str, Any] = {"value": self.pack(value)}
        except Lost:
            raise
        except BaseException as error:  # the other side raises it
            reply = {"error": [type(error).__name__, str(error)[:500]]}
        changed = [a if isinstance(a, list | dict | set) else None for a in args]
        self._send(reply | {"args": [self.pack(a) for a in changed]})

    def _send(self, message: object) -> None:
        body = json.dumps(message).encode()
        try:
            self._link.sendall(struct.pack("<I", len(body)) + body)
        except OSError:
            raise Lost("the program has ended") from None

    def _receive(self) -> dict[str, Any]:
        size = struct.unpack("<I", self._exactly(4))[0]
        if size > FRAME:
            raise Lost("the program sent more than a message may hold")
        message = json.loads(self._exactly(size))
        if not isinstance(message, dict):
            raise Lost("the program sent what is no message")
        return message

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            try:
                part = self._link.recv(min(size, 1 << 20))
            except OSError:
                part = b""
            if not part:
                raise Lost("the program has ended")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def pack(self, value: Value) -> Value:
        """A value as JSON: plain types exactly, functions and other objects by number."""
        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, int):
            return {"i": hex(value)} if abs(value) >> 64 else int(value)
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"f": repr(float(value))}
        for kind, letter in ((list, "l"), (tuple, "t"), (set, "s"), (frozenset, "z"), (deque, "q")):
            if isinstance(value, kind):
                return {letter: [self.pack(v) for v in value]}
        if isinstance(value, dict):
            return {"d": [[self.pack(k), self.pack(v)] for k, v in value.items()]}
        if isinstance(value, bytes | bytearray):
            return {"b": bytes(value).hex()}
        if isinstance(value, complex):
            return {"c": [repr(value.real), repr(value.imag)]}
        if type(value).__module__ in ("decimal", "fractions") and type(value).__name__ in ("Decimal", "Fraction"):
            return {"n": [type(value).__name__, str(value)]}
        if isinstance(value, range):
            return {"r": [value.start, value.stop, value.step]}
        if isinstance(value, StandIn):
            return {"mine": value._id}
        if isinstance(value, Iterator):
            items = list(itertools.islice(value, ITEMS + 1))
            if len(items) > ITEMS:
                raise Unsupported(f"an iterator of more than {ITEMS} items")
            return {"y": [self.pack(v) for v in items]}
        if self._calls_only and not callable(value):
            raise Unsupported(f"a {type(value).__name__} cannot be handed to the program")
        return {"o": self.offer(value)}

    def unpack(self, packed: Value) -> Value:
        """The value; raises ValueError or the like for what `pack` never makes."""
        if not isinstance(packed, dict):
            return packed
        [(letter, inner)] = packed.items()
        if letter in COLLECTIONS:
            return COLLECTIONS[letter]([self.unpack(v) for v in inner])
        if letter == "d":
            return {self.unpack(k): self.unpack(v) for k, v in inner}
        if letter == "o":
            return self._stand_ins.setdefault(int(inner), StandIn(self, int(inner)))
        if letter == "mine":
            return self._objects[inner]
        return SCALARS[letter](inner)


COLLECTIONS: dict[str, Callable[[list[Value]], Value]] = {
    "l": list, "t": tuple, "s": set, "z": frozenset, "q": deque, "y": iter,
}  # fmt: skip
SCALARS: dict[str, Callable[[Value], Value]] = {
    "i": lambda text: int(text, 16), "f": float, "b": bytes.fromhex, "r": lambda ends: range(*ends),
    "c": lambda parts: complex(float(parts[0]), float(parts[1])),
    "n": lambda pair: _exact(*pair),
}  # fmt: skip


def _exact(kind: str, text: str) -> Value:
    """A Fraction or a Decimal; their modules are slow to load and seldom needed."""
    if kind == "Fraction":
        from fractions import Fraction

        return Fraction(text)
    from decimal import Decimal

    return Decimal(text)


def _copy_into(mine: Value, theirs: Value) -> None:
    if isinstance(mine, list) and isinstance(theirs, list):
        mine[:] = theirs
    elif isinstance(mine, dict | set) and type(mine) is type(theirs) and mine != theirs:
        mine.clear()
        mine.update(theirs)


def _exception(name: str, text: str) -> BaseException:
    kind = vars(builtins).get(name)
    known = isinstance(kind, type) and issubclass(kind, Exception)
    return kind(text) if known and kind is not UnicodeDecodeError else Remote(f"{name}: {text}")


# --- the two roles ------------------------------------------------------------------------------------------


class Program:
    """What the tests may ask of the program as a whole; object 0 of its side."""

    def __init__(self, source: str, setup: str) -> None:
        self.space: dict[str, Value] = {"__name__": "solution"}
        exec(compile(setup, "setup.py", "exec"), self.space)
        exec(compile(source, "program.py", "exec"), self.space)

    def names(self) -> list[str]:
        return [name for name in self.space if isinstance(name, str)]

    def value(self, name: str) -> Value:
        return self.space[name]


def answer(job: dict[str, Any], *, link: int) -> None:
    """The program's side."""
    peer = Peer(socket.socket(fileno=link), calls_only=False)
    program = Program(job["source"], job["setup"])
    peer.offer(program)
    peer.serve()


def test(job: dict[str, Any], *, link: int) -> None:
    """The tests' side: one line of JSON for each test on stdout, which the tests themselves do not get."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    peer = Peer(socket.socket(fileno=link), calls_only=True)
    program = StandIn(peer, 0)
    for index in range(job["first"], len(job["tests"])):
        over = False
        try:
            _one(job, job["tests"][index], program)
            line: dict[str, Any] = {"passed": True}
        except Lost as error:
            line, over = {"passed": False, "detail": str(error), "lost": True}, True
        except BaseException as error:  # SystemExit too: a test that does not come to its end has failed
            line = {"passed": False, "detail": f"{type(error).__name__}: {error}"[:300]}
            if isinstance(error, Unsupported):
                line["unsupported"] = True
        out.write(json.dumps(line) + "\n")
        out.flush()
        if over:
            return


def _one(job: dict[str, Any], given: Value, program: StandIn) -> None:
    if job["function"] is not None:  # {"args": [...], "expected": ...}
        result = program.value(job["function"])(*given["args"])
        if not same(result, given["expected"]):
            raise AssertionError(f"got {result!r:.120}, expected {given['expected']!r:.120}")
        return
    entry, text = job["entry_point"], f"{job['test_setup']}\n{given}"
    space: dict[str, Value] = {"__name__": "tests"}
    if entry is not None:  # then the dataset's own helpers are its own, and not what the program makes of them
        exec(compile(job["setup"], "setup.py", "exec"), space)
    known = set(program.names())
    for name in free_names(text) - (space.keys() - {entry}):
        if name in sys.stdlib_module_names:
            space[name] = importlib.import_module(name)
        elif name in known:
            space[name] = program.value(name)
    if entry is not None:
        if entry not in known:
            raise NameError(f"the program defines no {entry}")
        space["candidate"] = space[entry] = program.value(entry)
    exec(compile(text, "tests.py", "exec"), space)
    run_defined(space, entry)


def run_defined(space: dict[str, Value], entry: str | None) -> None:
    """Run what the text only defined: `check(candidate)`, `test_*` functions, `unittest` cases."""
    if entry is not None and isinstance(space.get("check"), types.FunctionType):
        space["check"](space["candidate"])
    for name, value in list(space.items()):
        if name.startswith("test_") and isinstance(value, types.FunctionType) and not value.__code__.co_argcount:
            value()
    if "unittest" not in sys.modules:
        return
    import unittest

    ours = [v for v in space.values() if isinstance(v, type) and v.__module__ == "tests"]
    cases = [v for v in ours if issubclass(v, unittest.TestCase)]
    for case in cases:
        result = unittest.TestResult()
        unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
        if not result.wasSuccessful() or not result.testsRun:
            first = [text for _, text in (*result.failures, *result.errors)][:1]
            raise AssertionError((first or ["no test in the case"])[0][-300:])


def free_names(text: str) -> set[str]:
    """Names that the tests read and do not make themselves, without the built-in ones."""
    nodes = list(ast.walk(ast.parse(text)))
    read = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    made = {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    imports = [a for n in nodes if isinstance(n, ast.Import | ast.ImportFrom) for a in n.names]
    made |= {(a.asname or a.name).split(".")[0] for a in imports}
    return read - made - set(dir(builtins)) - {"__name__"}


def same(got: Value, expected: Value) -> bool:
    """Equal as JSON sees it: lists and tuples alike, keys as text, floats within 1e-6 where one is expected."""
    if isinstance(expected, bool) or isinstance(got, bool):
        return got is expected
    if isinstance(expected, float) and isinstance(got, int | float):
        return math.isclose(got, expected, rel_tol=1e-6, abs_tol=1e-6)
    if isinstance(expected, list):
        alike = isinstance(got, list | tuple) and len(got) == len(expected)
        return alike and all(same(g, e) for g, e in zip(got, expected, strict=True))
    if isinstance(expected, dict):
        texts = {str(k): v for k, v in got.items()} if isinstance(got, dict) else {}
        alike = isinstance(got, dict) and texts.keys() == expected.keys()
        return alike and all(same(texts[k], expected[k]) for k in expected)
    return type(got) is type(expected) and got == expected


ROLES: dict[str, Callable[..., None]] = {"answer": answer, "test": test}
