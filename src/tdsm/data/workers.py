"""Decode images in several processes: both ends of the pipe between them.

A job goes to a worker as one line of JSON and the encoded images behind it; the worker decodes them, writes the block
where the job says, and answers by a line of JSON. Nothing is pickled. A worker ends when its pipe does.

    {"path": …, "made_from": …, "channels": …, "size": …, "images": [[name, kind, length or path], …]}  bytes …
    {"error": null}
"""

import json
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

from tdsm.base.errors import ResourceError
from tdsm.data.blocks import write_block
from tdsm.data.decode import Encoded, decode_batch, printable

MOST = 16  # more than one process can read files for

Named = list[tuple[str, Encoded]]


def cores() -> int:
    """Count the processors this process may use, `MOST` at most."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST, usable)


class Workers:
    """Processes that decode blocks of encoded images and write them; a context manager.

    Raises:
        ResourceError: On a later call, if a worker ended.
        OSError: On a later call, if a worker could not write.
    """

    def __init__(self, count: int):
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        self._running: list[Future] = []
        self._all = [_started() for _ in range(count)]
        self._threads = ThreadPoolExecutor(count)
        for worker in self._all:
            self._idle.put(worker)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._all:
            worker.kill()
        self._threads.shutdown()
        for worker in self._all:
            worker.communicate()

    def decode(self, path: Path, named: Named, job: dict[str, Any]) -> None:
        """Hand a block to the next worker that is free."""
        worker = self._idle.get()
        for future in [future for future in self._running if future.done()]:
            self._running.remove(future)
            future.result()
        self._running.append(self._threads.submit(self._ask, worker, path, named, job))

    def finish(self) -> None:
        """Wait until all blocks are written."""
        for future in self._running:
            future.result()

    def _ask(self, worker: subprocess.Popen[bytes], path: Path, named: Named, job: dict[str, Any]) -> None:
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            _send(worker.stdin, path, named, job)
            answer = worker.stdout.readline()
        except BrokenPipeError:
            answer = b""
        finally:
            self._idle.put(worker)
        if not answer:
            raise ResourceError(
                f"decode images: a process that decoded ended unexpectedly (code {worker.wait()}), at one of "
                f"{len(named)} images from {printable(named[0][0])} to {printable(named[-1][0])}. What was decoded "
                "before is kept: run it again; if it ends there again, take these images out."
            )
        if error := json.loads(answer)["error"]:
            raise OSError(error)


def _started() -> subprocess.Popen[bytes]:
    """Start a worker that imports what this process imports, in a group of its own, so that Ctrl-C is ours."""
    search = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "tdsm.data.workers"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | search,
        start_new_session=True,
    )


def _send(pipe: Any, path: Path, named: Named, job: dict[str, Any]) -> None:
    images = [[name, *_described(image)] for name, image in named]
    pipe.write(json.dumps(job | {"path": str(path), "images": images}).encode() + b"\n")
    for _, image in named:
        if isinstance(image, bytes):
            pipe.write(image)
    pipe.flush()


def _described(image: Encoded) -> tuple[str, int | str | None]:
    if isinstance(image, Path):
        return "path", str(image)
    assert image is None or isinstance(image, bytes), "pixels need no decoding"
    return ("none", None) if image is None else ("bytes", len(image))


def _received(pipe: BinaryIO, kind: str, value: Any) -> Encoded:
    if kind == "path":
        return Path(value)
    return pipe.read(value) if kind == "bytes" else None


def main() -> None:
    """Decode and write what comes through the pipe, until it is closed."""
    parent, jobs = os.getppid(), sys.stdin.buffer
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever prints does not answer
    while line := jobs.readline():
        job, error = json.loads(line), None
        named = [(name, _received(jobs, kind, value)) for name, kind, value in job["images"]]
        batch = decode_batch(named, job["channels"], job["size"])
        if os.getppid() != parent:  # nobody waits for it any more; another may be writing there
            return
        try:
            write_block(Path(job["path"]), batch, job["made_from"])
        except OSError as failure:
            error = failure.strerror or str(failure)
        os.write(answers, json.dumps({"error": error}).encode() + b"\n")


if __name__ == "__main__":
    main()
