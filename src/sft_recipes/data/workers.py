"""Parts of rows that are counted side by side, here and in other processes: `python -m sft_recipes.data.workers`.

Rendering is Python and tokenising is Rust on every token, so a process for each core takes both. They are asked by
`python -m`, as all other processes here, since neither a notebook nor a program may be forked or imported again.
"""

import collections
import contextlib
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_recipes import children
from sft_recipes.data.tokenised import Part, Written
from sft_recipes.environment import quiet_environment
from sft_recipes.errors import InputError

if TYPE_CHECKING:
    from sft_recipes.data.survey import Counter, Split

# Rows from which more processes are faster: each takes a second to start.
WORTH_IT = 20_000
# A process takes about 150 MB.
MOST = 16

Counted = tuple["Split", Written | None]


def counted(
    counter: "Counter", parts: Sequence[Part], staging: Path | None, on_progress: Callable[[int], None] | None
) -> Iterator[Counted]:
    """What is in parts of rows, in their order.

    Raises:
        InputError: The chat template refuses a row, the first of those that it refuses; or a process has ended.
    """
    from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

    done, ended = 0, False
    lock = threading.Lock()

    def on_rows(rows: int) -> None:
        nonlocal done
        with lock:
            if ended:
                raise CancelledError
            done += rows
            if on_progress:
                on_progress(done)

    number = min(cores(), len(parts), MOST)
    if number < 2 or sum(part.rows for part in parts) < WORTH_IT:
        for part in parts:
            yield counter.count(part, staging, on_rows)
        return
    started = [_Worker(counter, staging, on_rows) for _ in range(number - 1)]
    idle: queue.SimpleQueue[Callable[[Part], Counted]] = queue.SimpleQueue()
    # This process has begun before the others have started.
    for way in (lambda part: counter.count(part, staging, on_rows), *(worker.count for worker in started)):
        idle.put(way)

    def count(part: Part) -> Counted:
        way = idle.get()
        try:
            return way(part)
        finally:
            idle.put(way)

    pool = ThreadPoolExecutor(number)
    try:
        ahead: collections.deque[Future[Counted]] = collections.deque()
        for part in parts:
            ahead.append(pool.submit(count, part))
            # No further ahead than there is memory for what comes back.
            if len(ahead) > 4 * number:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        ended = True
        for worker in started:
            worker.kill()
        pool.shutdown(cancel_futures=True)
        for worker in started:
            worker.close()


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Worker:
    """A process that counts one part after the other."""

    def __init__(self, counter: "Counter", staging: Path | None, on_rows: Callable[[int], None]) -> None:
        self._on_rows = on_rows
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sft_recipes.data.workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=quiet_environment(on_cpu=True),
        )
        self._send((counter.prepared, counter.tokenizer, staging))

    def _send(self, value: Any) -> None:
        try:
            pickle.dump(value, self._process.stdin)  # type: ignore[arg-type]
            self._process.stdin.flush()  # type: ignore[union-attr]
        except OSError:
            raise self._ended() from None

    def _ended(self) -> InputError:
        return InputError(
            f"a process that counts rows ended with code {self._process.wait()}; it may have had too little memory"
        )

    def count(self, part: Part) -> Counted:
        self._send(part)
        while True:
            try:
                # From a process of this program's own, which nobody else writes to.
                kind, value = pickle.load(self._process.stdout)  # type: ignore[arg-type]  # noqa: S301
            except (EOFError, pickle.UnpicklingError):
                raise self._ended() from None
            if kind == "counted":
                return value
            if kind == "problems":
                raise InputError(*value)
            self._on_rows(value)

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._process.communicate()


def main() -> None:
    """Count the parts that are asked for on the input, and answer on the output, until the input ends."""
    answers = children.answers("wb")
    from sft_recipes.data.survey import Counter

    def answer(kind: str, value: Any) -> None:
        pickle.dump((kind, value), answers)
        answers.flush()

    asked = sys.stdin.buffer
    prepared, tokenizer, staging = pickle.load(asked)  # noqa: S301, as above
    counter = Counter(prepared, tokenizer)
    while True:
        try:
            part = pickle.load(asked)  # noqa: S301, as above
        except EOFError:
            return
        try:
            answer("counted", counter.count(part, staging, lambda rows: answer("rows", rows)))
        except InputError as error:
            answer("problems", error.problems)


if __name__ == "__main__":
    main()
