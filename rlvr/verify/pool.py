"""Verifiers in killable child processes: `VerifierPool` scores text, and says of gold answers whether they can be used.

A thread per child feeds it one job (the responses to one task) at a time and watches the deadlines, so that
the event loop never blocks. CPU seconds decide a verdict; the far larger wall limit only catches what
sleeps, and such a response is tried once more in a fresh child before it is given up.

A response that uses far more CPU seconds (PATIENCE) than its verifier's latest verdicts is put aside and scored again,
under the whole limit, by as many children of lower priority: what hangs holds up nothing else. Which way a verdict
went changes its time and nothing else.
"""

from __future__ import annotations

import asyncio
import queue
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from rlvr.errors import VerifierError
from rlvr.types import Task, Verdict
from rlvr.verify.process import Child, Gone, Late
from rlvr.verify.specs import VerifierSpec

START_SECONDS = 120.0
PATIENCE = 50.0  # times the mean CPU seconds of the latest verdicts: the limit of a first attempt,
QUICK = 0.02  # CPU seconds at least
LATEST = 20  # verdicts, the time constant of that mean
WAITS = 20  # times the wall limit, at most, for a child that is running and not asleep
SLOW_NICE = 10  # of the children that score what was put aside
CHECK_BATCH = 256  # gold answers in one job
Reply = dict[str, Any]


@dataclass
class _Job:
    verifier: str
    items: Sequence[str]
    task: Mapping[str, Any] | None  # None: the items are gold answers to check
    ask: Literal["score", "explain", "check"] = "score"
    future: Future[list[Reply]] = field(default_factory=Future)
    replies: dict[int, Reply] = field(default_factory=dict)  # by item
    aside: bool = False  # in the second lane
    tried: set[int] = field(default_factory=set)  # items that have had their second chance


class VerifierPool:
    """Implements `rlvr.engine.protocols.Verifiers`. Use as a context manager, or call `close`."""

    def __init__(
        self,
        verifiers: Mapping[str, VerifierSpec],
        *,
        default: str | None = None,
        processes: int = 2,
        cpu_seconds: float = 5.0,
        wall_seconds: float = 60.0,
        memory: int = 4 << 30,
    ) -> None:
        """`default` (the first of `verifiers`) scores tasks that name none; `memory` is bytes of one child."""
        self._names = frozenset(verifiers)
        self._default = default or next(iter(verifiers))
        self._cpu_seconds, self._wall_seconds = cpu_seconds, wall_seconds
        self._setup = {
            "memory": memory,
            "verifiers": dict(verifiers),
        }
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._aside: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._versions: dict[str, str] = {}
        self._usual = dict.fromkeys(verifiers, cpu_seconds)  # mean CPU seconds of the latest verdicts
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._children: dict[int, Child] = {}  # by worker
        self._closed = False
        self._threads = [
            threading.Thread(target=self._serve, args=(i, lane), name=f"verifier-{i}", daemon=True)
            for i, lane in enumerate([self._jobs] * processes + [self._aside] * processes)
        ]
        self._processes = processes
        for thread in self._threads:
            thread.start()

    async def score(self, task: Task, responses: Sequence[str]) -> list[Verdict]:
        """One verdict per response, in order.

        What a response does is in its verdict (`error`: "timeout", "crash", "bad_verdict", "gold_unparsed",
        "infrastructure"). Raises VerifierError for an unknown or unloadable verifier and after `close`.
        """
        job = _Job(self._known(task), tuple(responses), _shared(task))
        replies = await asyncio.wrap_future(self._submit(job))
        verdicts = [_verdict(reply, version=self._versions.get(job.verifier, "")) for reply in replies]
        with self._lock:
            self._counts["scored"] += len(verdicts)
            self._counts.update(f"errors/{v.error}" for v in verdicts if v.error)
        return verdicts

    def explain(self, task: Task, response: str) -> tuple[Verdict, list[str]]:
        """The verdict on one response and the steps by which it came about; blocks. Raises VerifierError as `score`."""
        job = _Job(self._known(task), (response,), _shared(task), "explain")
        [reply] = self._submit(job).result()
        steps = reply.pop("steps", [])
        return _verdict(reply, version=self._versions.get(job.verifier, "")), steps

    def check_answers(self, tasks: Sequence[Task]) -> list[tuple[Task, str]]:
        """The tasks whose gold answer cannot be used, each with a line that says why; blocks until all are checked.

        Raises VerifierError when a verifier cannot be loaded.
        """
        names = [self._known(task) for task in tasks]
        jobs: list[tuple[_Job, list[Task]]] = []
        for name in dict.fromkeys(names):
            rows = [task for task, its in zip(tasks, names, strict=True) if its == name]
            for i in range(0, len(rows), CHECK_BATCH):
                some = rows[i : i + CHECK_BATCH]
                jobs.append((_Job(name, tuple(t.answer for t in some), None, "check"), some))
        for job, _ in jobs:
            self._submit(job)
        return [
            (task, _unusable(task, job.verifier, str(reply.get("detail") or reply["problem"])))
            for job, some in jobs
            for task, reply in zip(some, job.future.result(), strict=True)
            if reply.get("error") or reply["problem"] is not None
        ]

    def stats(self) -> dict[str, float]:
        """Counts since the start: "scored", "errors", "errors/<kind>", "restarts" of children, "retries", "aside"."""
        with self._lock:
            counts = dict(self._counts)
        errors = sum(n for key, n in counts.items() if key.startswith("errors/"))
        base = {"scored": 0.0, "errors": float(errors), "restarts": 0.0, "retries": 0.0, "aside": 0.0}
        return base | {key: float(n) for key, n in sorted(counts.items())}

    def close(self) -> None:
        """End the children; jobs that have not finished get a VerifierError. May be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for child in self._children.values():
                child.kill()
        for _ in range(self._processes):
            self._jobs.put(None)
            self._aside.put(None)
        for thread in self._threads:
            thread.join(2 * START_SECONDS)

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _known(self, task: Task) -> str:
        name = task.verifier or self._default
        if name not in self._names:
            raise VerifierError(
                f"task {task.id!r} names the verifier {name!r}, which this run has not loaded; "
                f"loaded are: {', '.join(sorted(self._names))}"
            )
        return name

    def _submit(self, job: _Job) -> Future[list[Reply]]:
        with self._lock:
            if self._closed:
                raise VerifierError("the verifiers are closed")
            (self._aside if job.aside else self._jobs).put(job)
        return job.future

    def _serve(self, worker: int, lane: queue.SimpleQueue[_Job | None]) -> None:
        """One worker thread: jobs until `close`. It starts its child, which therefore ends no sooner than it."""
        while (job := lane.get()) is not None:
            if not job.aside and not job.future.set_running_or_notify_cancel():
                continue
            try:
                todo = [i for i in range(len(job.items)) if i not in job.replies]
                while todo:
                    todo = self._attempt(worker, job, todo)
                if len(job.replies) == len(job.items):
                    job.future.set_result([job.replies[i] for i in range(len(job.items))])
                else:
                    job.aside = True
                    self._submit(job)
            except BaseException as error:  # not swallowed: it is raised where the job is awaited
                job.future.set_exception(error)
        self._drop(worker)

    def _attempt(self, worker: int, job: _Job, todo: Sequence[int]) -> list[int]:
        """Fill in replies to the items of `todo`, until all are there or the child is lost over one; what is left."""
        child = self._child(worker)
        items = [job.items[i] for i in todo]
        limit = self._limit(job)
        request = {"verifier": job.verifier, "ask": job.ask, "task": job.task, "items": items}
        request["cpu_seconds"] = limit
        done, started = 0, time.monotonic()
        try:
            child.send(request, deadline=started + self._wall_seconds)
            for i in todo:
                started = time.monotonic()
                self._take(job, i, self._receive(child), limit=limit)
                done += 1
        except (Gone, Late) as loss:
            if isinstance(loss, Late) or not loss.replaced:
                self._drop(worker)
                with self._lock:
                    self._counts["restarts"] += 1
            if self._closed:
                raise VerifierError("the verifiers were closed while a response was scored") from None
            if (reply := self._blame(job, todo[done], loss, limit=limit)) is None:
                return list(todo[done:])
            self._take(job, todo[done], reply | {"elapsed": time.monotonic() - started}, limit=limit)
            done += 1
        return list(todo[done:])

    def _receive(self, child: Child) -> Reply:
        """The next reply. A child that runs is waited for longer: on a busy machine its CPU seconds come late."""
        for _ in range(WAITS - 1):
            try:
                return child.receive(deadline=time.monotonic() + self._wall_seconds)
            except Late:
                if not child.running():
                    raise
        return child.receive(deadline=time.monotonic() + self._wall_seconds)

    def _limit(self, job: _Job) -> float:
        """CPU seconds of a verdict at this attempt."""
        if job.ask != "score" or job.aside:
            return self._cpu_seconds
        return min(self._cpu_seconds, max(QUICK, PATIENCE * self._usual[job.verifier]))

    def _take(self, job: _Job, item: int, reply: Reply, *, limit: float) -> None:
        """Keep a reply, or leave its item for the second lane when the limit of a first attempt was too short."""
        late = reply.get("error") == "timeout"
        cpu = reply.pop("cpu", None)
        if job.ask == "score" and cpu is not None and not late:
            self._usual[job.verifier] += (cpu - self._usual[job.verifier]) / LATEST
        if late and limit < self._cpu_seconds:
            with self._lock:
                self._counts["aside"] += 1
        else:
            job.replies[item] = reply

    def _blame(self, job: _Job, item: int, loss: Gone | Late, *, limit: float) -> Reply | None:
        """The verdict on the response over which the child was lost; None: try it once more."""
        if isinstance(loss, Gone) and loss.status in (-signal.SIGPROF, -signal.SIGXCPU):
            where = f", at {loss.where}" if loss.where else ""
            return {"error": "timeout", "detail": f"more than {limit:g} CPU seconds{where}"}
        if isinstance(loss, Gone) and loss.status != -signal.SIGKILL:
            return {"error": "crash", "detail": f"the verifier's process was lost: {loss}"}
        if item not in job.tried:  # asleep, or killed from outside: perhaps not the response's doing
            job.tried.add(item)
            with self._lock:
                self._counts["retries"] += 1
            return None
        late = f"no verdict within {self._wall_seconds:g} s of wall time"
        return {"error": "infrastructure", "detail": f"twice: {late if isinstance(loss, Late) else loss}"}

    def _child(self, worker: int) -> Child:
        """The worker's child, started and loaded when there is none. Raises VerifierError."""
        if (child := self._children.get(worker)) is not None:
            return child
        with self._lock:
            if self._closed:
                raise VerifierError("the verifiers are closed")
            child = self._children[worker] = Child()
        try:
            deadline = time.monotonic() + START_SECONDS
            child.send([p for p in sys.path if p], deadline=deadline)
            child.send(self._setup | {"nice": SLOW_NICE * (worker >= self._processes)}, deadline=deadline)
            reply = child.receive(deadline=deadline)
        except (Gone, Late) as loss:
            self._drop(worker)
            why = str(loss) if isinstance(loss, Gone) else f"not ready within {START_SECONDS:g} s"
            raise VerifierError(f"the verifier process for {self._files()} did not start: {why}") from None
        if "failed" in reply:
            self._drop(worker)
            raise VerifierError(f"a verifier cannot be loaded ({self._files()}): {reply['failed']}")
        self._versions = reply["versions"]
        return child

    def _drop(self, worker: int) -> None:
        with self._lock:
            child = self._children.pop(worker, None)
        if child is not None:
            child.end()

    def _files(self) -> str:
        return ", ".join(str(spec.found.path) for spec in self._setup["verifiers"].values())


def _unusable(task: Task, verifier: str, why: str) -> str:
    where = f"dataset {task.source or '?'}, row {task.id} ({task.meta.get('where', 'generated')})"
    return f"{where}: verifier {verifier!r} cannot use the answer {task.answer[:80]!r}: {why}"


def _shared(task: Task) -> dict[str, Any]:
    fields = {"id": task.id, "prompt": task.prompt, "answer": task.answer, "source": task.source}
    return fields | {"meta": dict(task.meta)}


def _verdict(reply: Reply, *, version: str) -> Verdict:
    if "error" in reply:
        reply = {"score": 0.0, "correct": False, "parsed": False} | reply
    return Verdict(**({"version": version} | reply))
