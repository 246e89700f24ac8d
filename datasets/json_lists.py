"""Lists of flat objects in a large json file, `{"images": [{..}, ..], "annotations": [{..}, ..]}`, read in bounded memory.

InterHand2.6M's data.json has about 1 GB for its train split, ten times that as Python objects. A block is cut after the last
object that it holds whole, and they alone are parsed; objects hold no others in this layout, so a closing brace ends one.
"""
import re
from collections.abc import Iterator
from pathlib import Path

import orjson

from utils.errors import InputError
from utils.files import require_file

BLOCK = 1 << 22  # bytes
LONGEST = 1 << 26  # bytes of an object, or before a list
_END = re.compile(rb"\}\s*\]")  # of a list of objects


def objects(path: Path, key: str, remedy: str) -> Iterator[dict]:
    """The objects of the list `key` of a json file, in order.

    Raises InputError (file, expected, found, `remedy`): absent, without that list, cut off, no json, a list of something else.
    """
    start = re.compile(rb'"' + key.encode() + rb'"\s*:\s*\[')
    wanted = f"expected {key}: a list of {{key: value}}"
    with open(require_file(path, remedy), "rb") as file:
        text = b""
        while (found := start.search(text)) is None:
            block = file.read(BLOCK)
            if not block:
                raise InputError(f"{path}: {wanted}, found none; {remedy}")
            text = text[-len(key) - 64:] + block  # the key may lie across two blocks
        text, ended = text[found.end():].lstrip(), False
        while not ended and not text.startswith(b"]"):
            end = _END.search(text)
            ended, last = end is not None, end.start() if end else text.rfind(b"}")
            if last >= 0:
                yield from _parsed(path, text[:last + 1].lstrip(b", \t\r\n"), wanted, remedy)
                text = text[last + 1:]
            if not ended:
                block = file.read(BLOCK)
                if not block or len(text) > LONGEST:
                    found = "one cut off" if not block else "something else"
                    raise InputError(f"{path}: {wanted}, found {found}; {remedy}")
                text = (text + block).lstrip()


def _parsed(path: Path, text: bytes, wanted: str, remedy: str) -> list[dict]:
    try:
        found = orjson.loads(b"[" + text + b"]")
    except orjson.JSONDecodeError as error:
        raise InputError(f"{path}: {wanted}, found a file that breaks ({error}); {remedy}") from error
    if not all(isinstance(one, dict) for one in found):
        raise InputError(f"{path}: {wanted}, found something else; {remedy}")
    return found
