"""The json lists of the official evaluations, read forward in bounded memory (specs/datasets.md 2.3, 2.4).

A prediction is [joints, vertices], each a list with one entry per sample of k x 3 numbers; labels are one such list per file. A
file of 1 GB is never held: blocks are cut at the ends of entries, whose brackets and commas are compared with what k x 3 numbers
must have, and the numbers alone are parsed, flat, by orjson. Whitespace and the way numbers are written do not matter. Whatever
else is found is decoded entry by entry (utils/official_faults.py) until the first wrong one can be named.
"""
import contextlib
import lzma
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import orjson
from jaxtyping import Float

from utils import official_faults as faults
from utils.errors import InputError
from utils.files import require_file

HEAD, BLOCK, LONGEST_ENTRY = 1 << 16, 1 << 22, 1 << 26  # bytes; HEAD: what is looked at to tell what a file is
MOST_ENTRIES = 200_000  # of a list that is read whole
_WHITESPACE, _NUMERIC = b" \t\r\n", b"0123456789+-.eE"
_FLAT = bytes.maketrans(b"[]", b"  ")
_CLASSES = bytes(32 if i in _WHITESPACE else 49 if i in _NUMERIC else 46 for i in range(256))  # " ", "1" for numbers', "."
PREDICTION, LABELS = 2, 1  # lists inside lists that come before an entry


@contextlib.contextmanager
def open_lists(path: Path, depth: int, alone: bool = False) -> Iterator["EntryReader"]:
    """An `EntryReader` of a json file, or of the pred.json inside a zip. depth: PREDICTION or LABELS.

    alone: in a zip without pred.json, another json is taken if it is the only one. Raises InputError as the reader does, and
    where the zip is broken or holds no such file.
    """
    path = require_file(path, "give the json, or the zip that holds it" if depth == PREDICTION else "give the labels' folder")
    with contextlib.ExitStack() as stack:
        if not zipfile.is_zipfile(path):
            yield EntryReader(stack.enter_context(open(path, "rb")).read, str(path), depth)
            return
        with _zip_faults(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
            name = _member(path, archive, alone)
            stream = stack.enter_context(archive.open(name))

        def read(size: int) -> bytes:
            with _zip_faults(path):
                return stream.read(size)

        yield EntryReader(read, f"{path} ({name})", depth)


@contextlib.contextmanager
def _zip_faults(path: Path) -> Iterator[None]:
    """Turns what a broken, encrypted or strangely compressed (a RuntimeError) archive raises into one line."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's; bz2 gives its own no number
        raise InputError(f"{path}: expected a whole zip, found one that breaks ({error}); zip it again: zip -j pred.zip "
                         "pred.json") from error


def _member(path: Path, archive: zipfile.ZipFile, alone: bool) -> str:
    """The name of the json inside an archive."""
    names = [name for name in archive.namelist() if not name.endswith("/")]
    if "pred.json" in names:
        return "pred.json"
    found = [name for name in names if name.endswith(".json") and not name.startswith("__MACOSX/")]
    if alone and len(found) == 1 and "/" not in found[0]:
        return found[0]
    held = f"only {', '.join(names[:4])}{' and more' if len(names) > 4 else ''}" if names else "nothing"
    raise InputError(f"{path}: expected pred.json at the top of the zip, found {held}; zip it with: zip -j pred.zip pred.json")


class EntryReader:
    """Reads a json text of lists of entries forward: `entries` (or `whole`) for each list in turn, then `finish`.

    Raises InputError, one line with the likely cause: not json, json of something else, other nesting, a truncated file, and by
    the number of the sample: another number of points than asked for, NaN, null, text.
    """

    def __init__(self, read: Callable[[int], bytes], path: str, depth: int):
        self.path = path
        self._read, self._depth = read, depth
        self._text, self._ended, self._lists, self._edge = b"", False, 0, b""
        self._split: InputError | None = None
        while len(self._text) < HEAD and not self._ended:
            self._fill()
        faults.check_head(path, self._text, depth)
        if self._split:
            raise self._split
        if depth == PREDICTION:
            self._text = self._text[1:]

    def whole(self, what: str, points: int) -> Float[np.ndarray, "n k 3"]:
        """All entries of the next list at once; see `entries`."""
        parts, count = [np.empty((0, points, 3))], 0
        for rows in self.entries(what, points):
            parts.append(rows)
            count += len(rows)
            if count > MOST_ENTRIES:
                raise InputError(f"{self.path}: expected a test set's list, found more than {MOST_ENTRIES:,} entries of {what}; "
                                 "is it the right file?")
        return np.concatenate(parts)

    def entries(self, what: str, points: int | None) -> Iterator[Float[np.ndarray, "b k 3"]]:
        """The entries of the next list, some at a time. points: their number in each; None = as many as the first has."""
        self._next_list(what)
        start = 0
        if self._peek() == b"]":
            self._text = self._text[1:]
            return
        while True:
            piece = self._cut(what, start, points)
            rows = self._parse(piece, what, start, points)
            self._text = self._text[len(piece):]
            start, points = start + len(rows), rows.shape[1]
            yield rows
            follows = self._peek()
            if follows not in (b"]", b","):
                self._fail(what, start, points)
            self._text = self._text[1:]
            if follows == b"]":
                return

    def finish(self) -> None:
        """Makes sure that the text ends where its lists do."""
        if self._depth == PREDICTION:
            if self._peek() != b"]":
                raise InputError(f"{self.path}: {self._after('a closing bracket')}; write exactly [joints, vertices]")
            self._text = self._text[1:]
        if self._peek():
            raise InputError(f"{self.path}: {self._after('the end of the file')}; write the json once, into a new file")

    def _next_list(self, what: str) -> None:
        """Moves into the next list: past a comma where one came before, and its bracket."""
        if self._lists:
            if self._peek() == b"]":
                raise InputError(f"{self.path}: expected [joints, vertices], found one list only; the {what} are missing")
            if self._peek() != b",":
                raise InputError(f"{self.path}: {self._after('a comma and the list of ' + what)}; write [joints, vertices]")
            self._text = self._text[1:]
        if self._peek() != b"[":
            raise InputError(f"{self.path}: {self._after('a list of ' + what)}; write [joints, vertices]")
        self._text, self._lists = self._text[1:], self._lists + 1

    def _after(self, wanted: str) -> str:
        found = faults.snippet(self._text) or "nothing: the file is cut off"
        return f"expected {wanted}{' after the list' if self._lists else ''}, found {found}"

    def _fill(self) -> None:
        """Another block that is more than whitespace, if there is one."""
        while not self._ended:
            block = self._read(BLOCK)
            self._ended = not block
            kept = block.translate(None, _WHITESPACE)
            if len(block) - len(kept) != block.count(b", ") or self._edge.endswith(b" "):  # else: one space after each comma
                self._look_for_split_numbers(block)
            self._edge = (kept[-1:] or self._edge[:1]) + (b" " if block[-1:].isspace() else b"")
            if kept:
                self._text = self._text + kept
                return

    def _look_for_split_numbers(self, block: bytes) -> None:
        """InputError, raised once the head is known, where taking the whitespace away would join two numbers."""
        text = self._edge + block
        if b"1 1" in b" ".join(text.translate(_CLASSES).split()):
            self._split = self._split or faults.split_number(self.path, text, self._depth)

    def _peek(self) -> bytes:
        if not self._text:
            self._fill()
        return self._text[:1]

    def _cut(self, what: str, start: int, points: int | None) -> bytes:
        """The whole entries at the front of the text, at least one."""
        while True:
            if self._split:
                raise self._split
            end = self._text.find(b"]]]")
            if end < 0:
                end = self._text.rfind(b"]]")
            if end >= 0:
                return self._text[: end + 2]
            if self._ended or len(self._text) > LONGEST_ENTRY:
                self._fail(what, start, points)
            self._fill()

    def _parse(self, piece: bytes, what: str, start: int, points: int | None) -> np.ndarray:
        """Entries (b,k,3) of a piece whose every bracket and comma is where it must be."""
        structure = piece.translate(None, _NUMERIC)
        if points is None:
            points = structure[: structure.find(b"]]")].count(b"[") - 1
        entry = b"[" + b",".join([b"[,,]"] * points) + b"]"
        count = (len(structure) + 1) // (len(entry) + 1)
        if points < 1 or structure != b",".join([entry] * count):
            self._fail(what, start, points)
        try:
            numbers = np.frombuffer(array("d", orjson.loads(b"[" + piece.translate(_FLAT) + b"]")))
        except (orjson.JSONDecodeError, OverflowError):
            numbers = None
        if numbers is None or np.abs(numbers).max() > faults.FARTHEST:
            self._fail(what, start, points)
        return numbers.reshape(count, points, 3)

    def _fail(self, what: str, start: int, points: int | None) -> None:
        """Raises the InputError of the first wrong entry of the text, which is read on a little to name it."""
        while not self._ended and len(self._text) < 2 * BLOCK:
            self._fill()
        fault = faults.first_fault(self._text, self._ended, what, start, points, self._depth)
        raise InputError(f"{self.path}: {fault}")
