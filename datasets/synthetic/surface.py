"""Colours of skin, sleeves and things, baked once as a small square of texels per mesh face (an atlas without seams or UV maps).

Texel (i, j) of a face, of SIDE x SIDE, stands at the barycentrics w1 = (i + 0.5) / SIDE, w2 = (j + 0.5) / SIDE; the half with
w1 + w2 > 1 is never looked up but by rounding. Skin: tone, mottling, redder knuckles and fingertips, a lighter palm, creases at
the joints and across the palm, nails, moles. Everything is a function of the flat rest hand, so it sits on the skin.
Colours are linear RGB in [0, 1].
"""
import numpy as np
import torch

from datasets.synthetic.anatomy import LONG, ROWS, Anatomy, unit
from utils.render import Fragments

SIDE = 8
# Google's Monk Skin Tone scale, lightest to darkest (sRGB); its end points are rare, people are drawn between neighbours.
TONES = np.array([[0xF6, 0xED, 0xE4], [0xF3, 0xE7, 0xDB], [0xF7, 0xEA, 0xD0], [0xEA, 0xDA, 0xBA], [0xD7, 0xBD, 0x96],
                  [0xA0, 0x7E, 0x56], [0x82, 0x5C, 0x43], [0x60, 0x41, 0x34], [0x3A, 0x31, 0x2A], [0x29, 0x24, 0x20]]) / 255.0


def linear(srgb: np.ndarray) -> np.ndarray:
    """Linear light of sRGB values in [0, 1] (the 2.2 power law)."""
    return np.power(np.clip(srgb, 0, 1), 2.2)


def texel_barycentrics() -> np.ndarray:
    """(SIDE*SIDE, 3) barycentrics of a face's texels; those past the diagonal are drawn in to it."""
    w = (np.arange(SIDE) + 0.5) / SIDE
    w1, w2 = (x.ravel() for x in np.meshgrid(w, w, indexing="ij"))
    over = np.maximum(w1 + w2, 1)
    w1, w2 = w1 / over, w2 / over
    return np.stack([1 - w1 - w2, w1, w2], 1)


def look_up(atlas: torch.Tensor, fragments: Fragments) -> torch.Tensor:
    """Colours (n,3) of the fragments in an atlas (faces * SIDE * SIDE, 3)."""
    cell = (fragments.bary[:, 1:] * SIDE).long().clamp_(0, SIDE - 1)
    return atlas.index_select(0, (fragments.face * SIDE + cell[:, 0]) * SIDE + cell[:, 1])


def texels(values: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Vertex values (v,c) at every texel (faces * SIDE * SIDE, c)."""
    return np.einsum("tk,fkc->ftc", texel_barycentrics(), values[faces]).reshape(-1, values.shape[1])


def smooth_noise(points: np.ndarray, size: float, rng: np.random.Generator, waves: int = 10) -> np.ndarray:
    """Random smooth function (n,) of points (n,d), about unit variance, with features of about `size`."""
    direction = unit(rng.normal(size=(waves, points.shape[1])))
    wave = direction * (np.pi / size * rng.uniform(0.5, 1.5, (waves, 1)))
    phase = (points @ wave.T).astype(np.float32) + rng.uniform(0, 2 * np.pi, waves).astype(np.float32)
    return np.sin(phase).sum(1) * np.sqrt(2 / waves)


def skin_tone(place: float, rng: np.random.Generator) -> np.ndarray:
    """sRGB skin colour at `place` in [0,1] from light to dark, with a little of a person's own hue."""
    x = (0.06 + 0.82 * place) * (len(TONES) - 1)
    low = min(int(x), len(TONES) - 2)
    tone = TONES[low] + (TONES[low + 1] - TONES[low]) * (x - low)
    blush = rng.uniform(0.0, 1.0) * np.array([0.02, -0.035, -0.045]) + np.array([0.0, -0.03, -0.05])
    return np.clip(tone * 0.95 + blush * (0.3 + tone.mean()), 0.03, 0.97)


def bake_skin(tone: np.ndarray, verts: np.ndarray, normals: np.ndarray, faces: np.ndarray, weights: np.ndarray, hand: Anatomy,
              rng: np.random.Generator) -> np.ndarray:
    """Atlas (faces * SIDE * SIDE, 3) of a hand's skin; tone sRGB (3); the rest hand's verts, normals, faces, weights (778,16).

    A left hand is baked in its mirror image, so that both hands of a person look alike for equal random numbers.
    """
    mirror = np.array([hand.sign, 1.0, 1.0])
    points, outward = texels(verts, faces), unit(texels(normals, faces))
    own = points * mirror
    scale = np.linalg.norm(hand.tips[2] - hand.joints[0]) / 0.187
    onto_palm = np.clip((points - hand.joints[0]) @ hand.forward / (0.03 * scale), 0, 1)  # the arm's skin has no pale side
    palmar = np.clip(0.5 + 1.2 * (outward @ hand.palm), 0, 1) * onto_palm
    colour = np.repeat(linear(tone)[None], len(points), 0)
    dark = 1 - tone.mean()
    colour *= 1 + palmar[:, None] * (np.array([0.06, 0.0, -0.02]) + dark * np.array([0.9, 0.7, 0.6]) * (dark > 0.45))
    colour *= 1 + 0.05 * smooth_noise(own, 0.03 * scale, rng)[:, None] + 0.035 * smooth_noise(own, 0.006 * scale, rng)[:, None]
    red = 0.05 * smooth_noise(own, 0.018 * scale, rng)
    joint = texels(weights, faces)
    red = red + 0.14 * _knuckles(points, outward, hand, scale) + 0.10 * joint[:, [3, 6, 9, 12, 15]].sum(1)
    colour *= 1 + red[:, None] * np.array([0.7, -0.6, -0.5])
    colour *= 1 - 0.42 * _creases(points, outward, joint, hand, scale)[:, None] * np.array([0.8, 1.0, 1.0])
    colour *= 1 - 0.28 * _palm_lines(points, palmar, hand, rng)[:, None]
    for spot in rng.choice(len(own), rng.integers(0, 7), replace=False):
        size = rng.uniform(0.0008, 0.0018) * scale
        colour *= 1 - rng.uniform(0.3, 0.6) * np.exp(-((own - own[spot]) ** 2).sum(1) / size**2)[:, None]
    return np.clip(_nails(colour, points, outward, hand, scale, rng), 0.004, 0.95).astype(np.float32)


def _fingers(hand: Anatomy):
    """For each finger: joints of its three joints, tip, rows, dorsal direction."""
    for i, name in enumerate(("thumb", *LONG)):
        rows = ROWS[name]
        yield [hand.joints[r + 1] for r in rows], hand.tips[i], rows, hand.nail if name == "thumb" else -hand.palm


def _knuckles(points: np.ndarray, outward: np.ndarray, hand: Anatomy, scale: float) -> np.ndarray:
    """Back of the finger joints, 0..1."""
    red = np.zeros(len(points))
    for joints, _, _, dorsal in _fingers(hand):
        facing = np.clip(outward @ dorsal, 0, 1)
        for joint in joints:
            red += facing * np.exp(-((points - joint) ** 2).sum(1) / (0.011 * scale) ** 2)
    return np.minimum(red, 1.0)


def _creases(points: np.ndarray, outward: np.ndarray, weights: np.ndarray, hand: Anatomy, scale: float) -> np.ndarray:
    """Lines across the inside of every finger joint, fainter ones on its back, 0..1."""
    dark = np.zeros(len(points))
    for joints, tip, rows, dorsal in _fingers(hand):
        own = weights[:, [r + 1 for r in rows]].sum(1)
        line = [*joints, tip]
        for k, joint in enumerate(joints):
            along = unit(line[k + 1] - joint)
            facing = outward @ dorsal
            shift = 0.006 * scale if k == 0 else 0.0  # the base crease lies beyond the knuckle
            t = (points - joint) @ along - shift
            inside = np.exp(-(t / (0.0011 * scale)) ** 2) + 0.5 * np.exp(-((t - 0.0028 * scale) / (0.0009 * scale)) ** 2)
            back = sum(np.exp(-((t - d * scale) / (0.0008 * scale)) ** 2) for d in (-0.0025, 0.0, 0.0025)) * (k > 0)
            dark += np.clip(own, 0, 1) ** 2 * (np.clip(-facing, 0, 1) * inside + 0.45 * np.clip(facing, 0, 1) * back)
    return np.minimum(dark, 1.0)


# Heart, head and life line: three points of a quadratic arc, wrist to knuckles and little finger to thumb.
_LINES = (((0.72, -0.15), (0.78, 0.3), (0.95, 0.75)), ((0.78, 1.1), (0.66, 0.6), (0.5, 0.1)),
          ((0.75, 1.12), (0.5, 0.75), (0.1, 0.6)))


def _palm_lines(points: np.ndarray, palmar: np.ndarray, hand: Anatomy, rng: np.random.Generator) -> np.ndarray:
    """Heart, head and life line, as arcs in the palm's plane, 0..1."""
    width = np.linalg.norm((hand.joints[1] - hand.joints[7]) @ hand.side)
    length = (hand.joints[4] - hand.joints[0]) @ hand.forward
    local = np.stack([(points - hand.joints[0]) @ hand.forward / length, (points - hand.joints[7]) @ hand.side / abs(width)], 1)
    inside = palmar > 0.5
    local, dark = local[inside], np.zeros(len(points))
    for knots in _LINES:
        a, b, c = (np.array(k) + rng.normal(0, 0.03, 2) for k in knots)
        s = np.linspace(0, 1, 40)[:, None]
        curve = (a * (1 - s) ** 2 + 2 * b * s * (1 - s) + c * s**2) * [length, width]
        gap = np.min(((local * [length, width])[:, None] - curve[None]) ** 2 @ np.ones(2), axis=1)
        dark[inside] += np.exp(-gap / 0.0011**2)
    return np.minimum(dark, 1.0) * np.clip(2 * palmar - 1, 0, 1)


def _nails(colour: np.ndarray, points: np.ndarray, outward: np.ndarray, hand: Anatomy, scale: float, rng: np.random.Generator):
    """Nails: paler and pinker than the skin, a rim, a white edge; now and then painted."""
    skin = np.median(colour, 0)
    paint = linear(rng.uniform(0.1, 0.9, 3)) if rng.uniform() < 0.1 else None
    for joints, tip, _, dorsal in _fingers(hand):
        along = unit(tip - joints[2])
        up = unit(dorsal - along * (dorsal @ along))
        across = np.cross(along, up)
        size = np.linalg.norm(tip - joints[2])
        x, y = (points - tip) @ across / (0.0052 * scale), ((points - tip) @ along + 0.22 * size) / (0.26 * size)
        radius = (np.abs(x) ** 3 + np.abs(y) ** 3) ** (1 / 3)
        facing = np.clip((outward @ up - 0.35) / 0.2, 0, 1) * (np.linalg.norm(points - tip, axis=1) < 0.8 * size)
        nail = np.clip((1.0 - radius) / 0.12, 0, 1) * facing
        rim = np.exp(-((radius - 1.05) / 0.12) ** 2) * facing
        base = paint if paint is not None else 0.75 * skin * [1.15, 0.98, 1.0] + 0.25 * linear(np.array([0.95, 0.78, 0.74]))
        edge = np.clip((y - 0.72) / 0.1, 0, 1)[:, None] * (0.0 if paint is not None else 0.6)
        fresh = base * (1 - edge) + linear(np.array([0.93, 0.90, 0.86])) * edge
        colour = colour * (1 - 0.3 * rim[:, None])
        colour = colour * (1 - nail[:, None]) + fresh * nail[:, None]
    return colour


def bake_arm(tone: np.ndarray, length: np.ndarray, turn: np.ndarray, sleeve: float, rng: np.random.Generator) -> np.ndarray:
    """Colours (n,3) on the forearm at `length` (n) m from the wrist and angle `turn` (n) about it; sleeve from `sleeve` on."""
    points = np.stack([length, 0.03 * np.cos(turn), 0.03 * np.sin(turn)], 1)
    skin = linear(tone) * (1 + 0.05 * smooth_noise(points, 0.03, rng) + 0.03 * smooth_noise(points, 0.007, rng))[:, None]
    cloth = _cloth(np.stack([length, 0.035 * turn], 1), rng)
    hem = 1 - 0.35 * np.exp(-((length - sleeve) / 0.004) ** 2)
    return np.clip(np.where((length > sleeve)[:, None], cloth * hem[:, None], skin), 0.004, 0.95).astype(np.float32)


def _cloth(uv: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Plain, striped or checked cloth (n,3) at positions (n,2), metres."""
    colours = linear(np.clip(rng.uniform(0.08, 0.85) + rng.normal(0, 0.12, (2, 3)), 0.03, 0.92))
    step, kind = rng.uniform(0.008, 0.03), rng.integers(4)
    bands = (np.floor(uv / step) % 2 > 0.5).astype(float)
    share = [np.zeros(len(uv)), bands[:, 0], bands[:, 1], bands.mean(1)][kind]
    folds = 1 + 0.10 * smooth_noise(uv, 0.02, rng) + 0.05 * smooth_noise(uv, 0.004, rng)
    return (colours[0] + (colours[1] - colours[0]) * share[:, None]) * folds[:, None]


def bake_thing(uv: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Colours (n,3) of a thing at skin positions (n,2), metres: a base colour, printed bands and patches, wear."""
    palette = linear(rng.uniform(0.05, 0.95, (4, 3)))
    colour = np.repeat(palette[:1], len(uv), 0)
    for _ in range(rng.integers(0, 7)):
        centre, half = uv[rng.integers(len(uv))], rng.uniform(0.006, 0.05, 2)
        offset = np.abs(uv - centre) / half
        inside = (offset.max(1) < 1) if rng.uniform() < 0.7 else ((offset**2).sum(1) < 1)
        colour[inside] = palette[rng.integers(1, 4)]
    wear = 1 + 0.05 * smooth_noise(uv, 0.02, rng) + 0.03 * smooth_noise(uv, 0.005, rng)
    return np.clip(colour * wear[:, None], 0.004, 0.95).astype(np.float32)
