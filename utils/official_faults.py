"""What is wrong with a json file that should be an official list, and the likely cause: the words of the refusals.

Only reached when utils/official_files.py found something else than lists of k x 3 numbers; looks at the first few MB at most.
"""
import json
import math
import re

from utils.errors import InputError

REMEDY = {2: "write it again, for example with `run.py export`", 1: "fetch the labels again"}  # by the lists around an entry
AGAIN = {2: "predict that sample again", 1: REMEDY[1]}
NESTING = {2: "[joints, vertices], each a list of samples of k x 3 numbers", 1: "a list of samples of k x 3 numbers"}
FARTHEST = 1e9  # a larger coordinate is a fault in any unit, and its square may overflow
BEGINNINGS = (
    (rb"\s*$", "an empty file"), (rb"PK", "a zip that breaks (copied in part?)"), (rb"\x93NUMPY", "a NumPy array"),
    (rb"\x80[\x02-\x05]", "a Python pickle"), (rb"\x1f\x8b", "a gzip file"), (rb"\xef\xbb\xbf", "text with a byte order mark"),
    (rb"\xff\xfe|\xfe\xff|\[\x00", "text in UTF-16 instead of UTF-8 (redirected in PowerShell?)"),
    (rb"<", "a web page"), (rb"version https://git-lfs", "a Git LFS pointer instead of the file"),
    (rb"-?\d+(,-?[\d.e+-]+){3}", "lines of numbers: DexYCB's result text? (score dex_ycb reads that)"),
)
ENTRIES = {  # by points of an entry: what a list of such entries is
    3: "entries of 3 x 3: a list of camera matrices such as evaluation_K.json", 21: "one list of 21 x 3: joints only",
    778: "one list of 778 x 3: vertices only"}


def check_head(path: str, text: bytes, depth: int) -> None:
    """Refuses a text (whitespace removed) that does not begin as `depth` levels above entries of points do."""
    remedy = REMEDY[depth]
    for pattern, found in BEGINNINGS:
        if re.match(pattern, text):
            raise InputError(f"{path}: expected json, {NESTING[depth]}, found {found}; {remedy}")
    if text[:1] == b"{":
        keys = ", ".join(key.decode("utf-8", "replace") for key in re.findall(rb'"([^"]{1,40})":', text[:4000])[:3])
        raise InputError(f"{path}: expected {NESTING[depth]}, found a table{f' with the keys {keys}' if keys else ''}: json of "
                         f"another dataset or program?; {remedy}")
    if text[:1] != b"[":
        raise InputError(f"{path}: expected json, {NESTING[depth]}, found {snippet(text)}; {remedy}")
    match = re.match(rb"\[+", text)
    levels, wanted = len(match[0]), depth + 2
    inner = text[levels : levels + 1]
    if levels == wanted or levels in (depth, depth + 1) and inner == b"]" or levels == depth and inner not in b"-0123456789":
        return  # the last two: empty lists; a first entry that is null, say
    if not inner:
        raise InputError(f"{path}: expected {NESTING[depth]}, found a file cut off after {levels} brackets; {remedy}")
    raise InputError(f"{path}: expected {NESTING[depth]}, found {_nesting(text, levels, wanted)}; {remedy}")


def _nesting(text: bytes, levels: int, wanted: int) -> str:
    """What a text with another number of leading brackets probably is."""
    body = text[levels:]
    numbers = body[: body.find(b"]")].count(b",") + 1
    points = text[: text.find(b"]]")].count(b"[") - levels + 1
    if body[:1] not in b"-0123456789":
        return f"{snippet(body)} inside {levels} list(s)"
    if levels > wanted:
        if wanted == 3 and levels == 4:
            return "lists one level deeper: is it a prediction, [joints, vertices], in the labels' place?"
        return f"{levels - wanted} level(s) more: entries of 1 x 21 x 3 instead of 21 x 3?"
    if levels == 3 and numbers == 3:
        second = text[text.find(b"]]") + 3 :]
        if (points, second[: second.find(b"]]")].count(b"[") - 1) == (21, 778):
            return "one sample only, or one level less: all samples' joints must be in a list, and all vertices in another"
        return f"{ENTRIES.get(points, f'one list of {points} x 3 only')}, where a prediction holds both"
    if numbers == 61:
        return "entries of 61 numbers: FreiHAND's MANO labels (evaluation_mano.json)?"
    if numbers in (63, 2334):
        return f"flat entries of {numbers} numbers: make them {numbers // 3} x 3"
    if levels == 1:
        return "one flat list of numbers, such as evaluation_scale.json"
    return f"{wanted - levels} level(s) less: innermost lists of {numbers} numbers"


def split_number(path: str, text: bytes, depth: int) -> InputError:
    """The refusal of a text in which whitespace stands inside a number, or a comma is missing between two."""
    match = re.search(rb"[-+.\w]+\s+[-+.\w]+", text)
    return InputError(f"{path}: expected commas between numbers, found {snippet(match[0])}; {REMEDY[depth]}")


def first_fault(text: bytes, ended: bool, what: str, start: int, points: int | None, depth: int) -> str:
    """The words for the first wrong entry of a text that begins at entry `start`; `ended` where the file ends with the text."""
    words, at, number, decoder = text.decode("utf-8", "replace"), 0, start, json.JSONDecoder()
    remedy = REMEDY[depth]
    while True:
        at += words.startswith(",", at)
        if words.startswith("]", at):
            return f"the list of {what} ends oddly after {number:,} entries ({snippet(text[at:])}); {remedy}"
        try:
            value, end = decoder.raw_decode(words, at)
        except json.JSONDecodeError as error:
            where = f"sample {number} of the {what} (counted from 0)"
            if not ended or error.pos < len(words) and not _cut_off(words[error.pos :]):
                return f"expected json, found other text in {where}: {snippet(words[error.pos :].encode())}; {remedy}"
            end = where if words else f"the {what} after {number:,} samples"
            return f"the file is truncated: it ends in {end}; {remedy}"
        except (RecursionError, ValueError):
            return f"sample {number} of the {what} (counted from 0) is nested too deep or has an endless number; {remedy}"
        if fault := _fault(value, what, points, number, depth):
            return f"sample {number} of the {what} (counted from 0): {fault}"
        points = points or len(value)
        at, number = end, number + 1


def _cut_off(rest: str) -> bool:
    """Whether what breaks is the beginning of a number or word that the end of the file cut."""
    return len(rest) < 10 and re.fullmatch(r"[-\w.+]*", rest) is not None


def _fault(value: object, what: str, points: int | None, number: int, depth: int) -> str:
    """What is wrong with entry `number`; empty if nothing is."""
    wanted = f"expected {points or 'k'} x 3 numbers"
    if not isinstance(value, list):
        remedy = "was this sample not predicted?" if value is None and depth == 2 else REMEDY[depth]
        return f"{wanted}, found {_kind(value)}: {remedy}"
    if not value or not isinstance(value[0], list):
        return f"{wanted}, found {f'a flat list of {len(value)}' if value else 'an empty list'}"
    for row, point in enumerate(value):
        if not isinstance(point, list) or len(point) != 3:
            found = f"a list of {len(point)}" if isinstance(point, list) else _kind(point)
            return f"{wanted}, found {found} as point {row}"
        for x in point:
            if isinstance(x, bool) or not isinstance(x, (int, float)):
                return f"{wanted}, found {_kind(x)} in point {row}"
            if x != x or x in (math.inf, -math.inf):
                return f"a coordinate of point {row} is {'NaN' if x != x else 'infinite'}; {AGAIN[depth]}"
            if abs(x) > FARTHEST:
                found = f"{x:g}" if abs(x) < 10**300 else f"a whole number of {len(str(abs(x)))} digits"
                return f"a coordinate of point {row} is {found}, expected metres; {AGAIN[depth]}"
    if points and len(value) != points:
        return f"expected {points} x 3 numbers, found {len(value)} x 3{_cause(what, points, len(value), number, depth)}"
    return ""


def _cause(what: str, points: int, found: int, number: int, depth: int) -> str:
    """The likely reason for another number of points."""
    if depth == 1 and {points, found} == {21, 778}:
        return ": do evaluation_xyz.json and evaluation_verts.json hold each other's labels?"
    if (points, found) == (21, 778) and number:
        return ": pairs of joints and vertices? All joints come first, then all vertices"
    if (points, found) == (21, 778):
        return ": vertices come first; the order is [joints, vertices]"
    if (points, found) == (778, 21):
        return ": joints in the vertices' place; the order is [joints, vertices]"
    if found == 3:
        return ": a list of camera matrices (evaluation_K.json)?"
    if what == "joints" and found == 16:
        return ": MANO's 16 joints without the fingertips; add those"
    if what == "joints" and found == 20:
        return ": is the wrist missing?"
    if what == "vertices" and points == 778:
        return ": not MANO's mesh, whose 778 vertices the mesh scores need (--unchecked scores it as the official program does)"
    return ": all samples must have the same number"


def _kind(value: object) -> str:
    """A json value in words."""
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "a table"
    return {type(None): "null", bool: "true or false", str: "text"}.get(type(value), "a number")


def snippet(text: bytes) -> str:
    """The beginning of a text, for a message; empty for none."""
    return repr(text[:24].decode("utf-8", "replace")) if text else ""
