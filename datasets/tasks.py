"""From the list of a dataset's samples to the tasks of its preparation: evenly thinned out, some hundred pictures each."""
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets.cutting import Cut, Loaded
from datasets.prepare import Columns, fingerprint, shard_of
from datasets.prepared_options import PreparedOptions

PICTURES = 256  # of a task


def spread(samples: Sequence, limit: int | None) -> list:
    """At most `limit` of the samples (None = all), evenly spread, in order."""
    if limit is None or limit >= len(samples):
        return list(samples)
    return [samples[i * len(samples) // limit] for i in range(limit)]


def pieces(samples: Sequence, load: Callable[[Any], Loaded], columns: Columns, options: PreparedOptions, name: str,
           masks: bool = False, digest: str | None = None) -> Iterator[Cut]:
    """Tasks of up to PICTURES samples each, of the split `name`; `load` reads one sample (datasets/cutting.py).

    digest: of the annotation files, where samples follow from these and the plan alone: then it tells whether a finished task is
    still valid. None = the samples' own numbers do, so samples must be tuples of texts, numbers and arrays.
    """
    stored = options.stored
    for number, start in enumerate(range(0, len(samples), PICTURES)):
        some = tuple(samples[start:start + PICTURES])
        parts = (digest, start, len(some)) if digest else _parts(some)
        yield Cut(name, shard_of(options.prepared, f"{name}_{number:06d}"), fingerprint(*parts), some, load, columns,
                  stored.factor, stored.pixels, stored.quality, options.unreadable, masks)


def _parts(value: Any) -> Iterator[object]:
    """What a nested tuple holds."""
    if isinstance(value, tuple):
        for item in value:
            yield from _parts(item)
    else:
        yield value if not isinstance(value, Path) else value.name
