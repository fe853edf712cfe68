"""A process that does jobs one after the other, and its two users: the runner of steps, and the pool that compiles.

A job is ``{"do": "module:function", ...arguments}``; the function yields facts. Whatever a job does to its process, the
process that plans goes on: a worker that crashes, hangs or has lost its GPU is replaced.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .schedule import Job, StepFailedError, Tell

ROOT = Path(__file__).resolve().parents[2]
_GRACE = 2.0  # seconds between the end of a worker's output and its own


class Worker:
    """The other process, seen from here."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        out, theirs = os.pipe()
        with open(self.environment.get("BERTXFER_BENCH_LOG", os.devnull), "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.gpu.worker", str(theirs)],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=log,  # what libraries have to say
                stderr=log,
                pass_fds=[theirs],
                start_new_session=True,
            )
        os.close(theirs)
        self.out, self.buffer = out, b""

    def send(self, job: Job) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has died: `messages` says so
            self.process.stdin.write((json.dumps(job) + "\n").encode())
            self.process.stdin.flush()

    def messages(self, seconds: float) -> Iterator[dict[str, Any] | None]:
        """What it tells within this time; None once it has died."""
        deadline = time.monotonic() + seconds
        while True:
            while b"\n" in self.buffer:
                line, _, self.buffer = self.buffer.partition(b"\n")
                yield json.loads(line)
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self.out], [], [], max(left, 0.0))
            if not ready:
                return
            piece = os.read(self.out, 1 << 16)
            if not piece:
                yield None
                return
            self.buffer += piece

    def stop(self, grace: float = 0.0) -> int | None:
        """Kills it, with the processes that compile for it; its exit code if it ends by itself within ``grace``."""
        code = None
        with suppress(subprocess.TimeoutExpired):
            code = self.process.wait(grace)
        with suppress(ProcessLookupError):  # it was the last of its group
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.out)
        return code


class WorkerRunner:
    """Does steps' jobs in one worker, which is replaced when it is no good any more, or runs in another environment."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self.worker: Worker | None = None

    def run(self, job: Job, timeout: float, tell: Tell) -> None:
        environment = {**self.environment, **job.get("environment", {})}
        if self.worker is not None and self.worker.environment != environment:
            self.close()
        if self.worker is None:
            self.worker = Worker(environment)
        self.worker.send(job)
        for message in self.worker.messages(timeout):
            if message is None:
                code = self.close(_GRACE)
                raise StepFailedError(f"the worker ended with {code}")
            if "fact" in message:
                tell(message["fact"])
                continue
            if not message["usable"]:
                self.close()
            if message["why"] is not None:
                raise StepFailedError(message["why"])
            return
        self.close()
        raise StepFailedError(f"nothing came of it in {timeout:.0f} seconds")

    def close(self, grace: float = 0.0) -> int | None:
        worker, self.worker = self.worker, None
        return worker.stop(grace) if worker is not None else None


class CompilePool:
    """Jobs done in the background, in their order, by as many workers as there are cores.

    A job that fails has ended, too: whoever waits for it finds out why.
    """

    def __init__(
        self,
        jobs: Sequence[tuple[str, Job]],
        workers: int,
        environment: Mapping[str, str],
        timeout: float = 120.0,
    ) -> None:
        self.todo = list(jobs)
        self.names = {name for name, _ in jobs}
        self.workers, self.environment, self.timeout = workers, dict(environment), timeout
        self.busy: dict[str, tuple[Worker, float]] = {}
        self.idle: list[Worker] = []
        self.done: set[str] = set()

    def poll(self, tell: Tell) -> None:
        for name, (worker, begin) in list(self.busy.items()):
            taken = time.monotonic() - begin
            over, why, usable = self._look(worker, taken)
            if over:
                del self.busy[name]
                self.done.add(name)
                if usable:
                    self.idle.append(worker)
                else:
                    worker.stop()
                tell({"kind": "compiled", "name": name, "seconds": round(taken, 2), "failed": why})
        while self.todo and len(self.busy) < self.workers:
            name, job = self.todo.pop(0)
            worker = self.idle.pop() if self.idle else Worker(self.environment)
            worker.send(job)
            self.busy[name] = worker, time.monotonic()

    def _look(self, worker: Worker, taken: float) -> tuple[bool, str | None, bool]:
        """Whether its job is over, why it failed if it did, and whether the worker can do another."""
        for message in worker.messages(0.0):
            if message is None:
                return True, "the worker died", False
            if "fact" not in message:
                return True, message["why"], message["usable"]
        if taken > self.timeout:
            return True, f"nothing came of it in {self.timeout:.0f} seconds", False
        return False, None, True

    def ended(self, name: str) -> bool:
        return name in self.done or name not in self.names

    def running(self) -> int:
        return len(self.busy)

    def close(self) -> None:
        for worker in (*self.idle, *(worker for worker, _ in self.busy.values())):
            worker.stop()
        self.idle, self.busy = [], {}


def serve(descriptor: int) -> None:
    """In the worker: does what comes on standard input until there is no more."""
    _prepare()
    with os.fdopen(descriptor, "w", buffering=1) as out:
        for line in sys.stdin:
            job = json.loads(line)
            job.pop("environment", None)
            module, _, function = job.pop("do").partition(":")
            why = None
            try:
                for fact in getattr(importlib.import_module(module), function)(**job):
                    out.write(json.dumps({"fact": fact}) + "\n")
            except Exception as error:
                first = (str(error).strip().splitlines() or [""])[0]
                why = f"{type(error).__name__}: {first[:300]}"
            out.write(json.dumps({"why": why, "usable": why is None or _usable()}) + "\n")


def _prepare() -> None:
    """What the environment asks for: other people's packages, and another build of the kernels in C++."""
    peers, library = (os.environ.get(f"BERTXFER_BENCH_{name}") for name in ("PEERS", "CUDA"))
    sys.path[:0] = [peers] if peers else []
    if library:
        importlib.import_module("torch")  # whose symbols it needs
        spec = importlib.util.spec_from_file_location("bertxfer_fast._C_cuda", library)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules["bertxfer_fast._C_cuda"] = module


def _usable() -> bool:
    """Whether this process's GPU still answers; without benchmarks that use one there is none to lose."""
    device = sys.modules.get("benchmarks.device")
    return device is None or device.usable()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
