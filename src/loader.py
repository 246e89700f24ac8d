"""Samples decoded ahead of the loop that uses them, by worker processes or by one thread, always in the order asked for.

The thread suits machines with few cores: image decoders release Python's lock, and nothing is copied between processes. Worker
processes are started once for the whole run. What goes wrong in a worker comes back as one line: an InputError travels as a value
(a loader would bury it in a traceback), and a worker that was killed becomes an InputError.
"""
import contextlib
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from src.order import Key
from utils.batch import Source
from utils.errors import InputError

Raw = dict[str, Tensor]
AHEAD = 3  # stacks that the thread decodes ahead
RESUMES = "lower train.workers or train.batch and run again: the run goes on from its last checkpoint"


class _Stacks(Dataset):
    """Indexed by a list of keys: the collated stack of these samples, or the InputError that one of them raised."""

    def __init__(self, source: Source):
        self.source = source

    def __getitem__(self, keys: list[Key]) -> Raw | InputError:
        try:
            return default_collate([self.source[key] for key in keys])
        except InputError as error:
            return error


def stacks(source: Source, asked: Iterable[list[Key]], *, workers: int = 0, pinned: bool = False,
           remedy: str = RESUMES) -> Iterator[Raw]:
    """Collated samples for each list of keys, in order, on the CPU (in pinned memory where `pinned`).

    remedy: what to do about a worker that died. Raises InputError: a sample that cannot be read (the source's own line), a
    worker process that died.
    """
    found = _by_processes(source, asked, workers, pinned, remedy) if workers else _by_thread(source, asked, pinned)
    with contextlib.closing(found):
        for stack in found:
            if isinstance(stack, InputError):
                raise stack
            yield stack


@contextlib.contextmanager
def worker_deaths(remedy: str = RESUMES) -> Iterator[None]:
    """Turns the death of a worker process into an InputError. Torch raises it from a signal handler, wherever the program is just
    then: so this belongs around the whole loop that uses `stacks`."""
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:  # the last two: it died while it handed a stack over
        text = str(error) or type(error).__name__
        if isinstance(error, RuntimeError) and not text.startswith("DataLoader worker (pid"):
            raise
        if text.startswith("Caught "):  # an error that the worker itself raised
            raise
        raise InputError(f"a process that decodes images died ({text.splitlines()[0]}); out of memory? {remedy}") from error


def _by_thread(source: Source, asked: Iterable[list[Key]], pinned: bool) -> Iterator[Raw | InputError]:
    def fetch(keys: list[Key]) -> Raw | InputError:
        stack = reader[keys]
        return {name: value.pin_memory() for name, value in stack.items()} if pinned and isinstance(stack, dict) else stack

    reader, waiting = _Stacks(source), deque()
    with ThreadPoolExecutor(1, "decode") as thread:
        try:
            for keys in asked:
                waiting.append(thread.submit(fetch, keys))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            thread.shutdown(cancel_futures=True)


def _by_processes(source: Source, asked: Iterable[list[Key]], workers: int, pinned: bool, remedy: str,
                  ) -> Iterator[Raw | InputError]:
    loader = DataLoader(_Stacks(source), batch_size=None, sampler=asked, num_workers=workers, pin_memory=pinned,
                        collate_fn=_as_is, worker_init_fn=_apart, prefetch_factor=2,
                        generator=torch.Generator())  # or it would draw from torch's own numbers, amid a step
    iterator = iter(loader)
    try:
        with worker_deaths(remedy):
            yield from iterator
    finally:
        iterator._shutdown_workers()  # a traceback may keep it alive


def _as_is(stack: Raw | InputError) -> Raw | InputError:
    return stack


def _apart(_: int) -> None:
    """A group of its own and torch's default signals: Ctrl-C and a signal to the run's group end the run, and the run its workers
    (which also end by themselves once it is gone)."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
