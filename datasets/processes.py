"""A function over many tasks by several processes, for preparation: what went wrong is one line, and nothing is left running.

Processes are spawned, not forked: the parent may hold torch's threads. (concurrent.futures does the same, but can wait for ever,
or raise from its insides, when a process is killed while others are starting.)
"""
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import cv2

from utils.errors import InputError


def in_processes(function: Callable[[Any], Any], tasks: Sequence[Any], workers: int) -> Iterator[Any]:
    """Results of function(task), as they come; in this process where workers is 1 or there is one task.

    `function` is a module's own, its module light to import. When a task raises, or a process is killed (InputError), no
    further task is begun, the running ones are finished and yielded, and then it is raised.
    """
    if min(workers, len(tasks)) <= 1:
        yield from map(function, tasks)
        return
    waiting, pipes = list(reversed(tasks)), {}
    try:
        for _ in range(min(workers, len(tasks))):
            _start(function, pipes)
        yield from _collect(waiting, pipes)
    finally:
        for process in pipes.values():
            process.terminate()
            process.join()


def _start(function: Callable, pipes: dict[Connection, multiprocessing.Process]) -> None:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(function, there), daemon=True)
    process.start()
    there.close()  # so that the end of the process is the end of the pipe
    pipes[here] = process


def _collect(waiting: list[Any], pipes: dict[Connection, multiprocessing.Process]) -> Iterator[Any]:
    """Hand out the tasks, last first; a process that gets none is done."""
    failure: BaseException | None = None
    while pipes:
        for pipe in wait(list(pipes)):
            try:
                answer = pipe.recv()  # None: ready; (True, result) or (False, error) of its task
                if answer is not None and not answer[0]:
                    failure = failure or answer[1]
                task = waiting.pop() if waiting and failure is None else None
                pipe.send(task)
            except (EOFError, OSError):
                process = pipes.pop(pipe)
                process.join()
                failure = failure or _killed(process)
                continue
            if task is None:
                pipes.pop(pipe).join()
            if answer is not None and answer[0]:
                yield answer[1]
    if failure is not None:
        raise failure


def _killed(process: multiprocessing.Process) -> InputError:
    code = process.exitcode
    how = f"killed by signal {-code}; out of memory?" if code < 0 else f"exit code {code}"
    return InputError(f"a worker process ended before its work did ({how}); what was finished is kept: run the same command "
                      "again, with fewer workers if memory is short")


def _work(function: Callable, pipe: Connection) -> None:
    """A worker: says that it is ready, then answers tasks until it is told None."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent decides
    cv2.setNumThreads(1)
    sentinel = multiprocessing.parent_process().sentinel

    def watch() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()  # a worker ends with its parent, also when that was killed
    pipe.send(None)
    while (task := pipe.recv()) is not None:
        try:
            answer = True, function(task)
        except Exception as error:  # noqa: BLE001  it is raised in the parent
            if not isinstance(error, InputError):
                error.add_note(f"in a worker process:\n{traceback.format_exc()}")
            answer = False, error
        pipe.send(answer)
