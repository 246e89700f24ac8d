"""What happens in a sequence: a hand that gestures over a table, or reaches for a thing, grasps and lifts it.

Smooth motion (minimum jerk) between sampled poses within the joint limits, wrist included. Table frame: origin in the middle of
the table top, z up, metres. The person sits at azimuth `seat`; forearm and entry come from there. A grasped thing follows the
hand rigidly; the fingers close until the skin touches it (datasets/synthetic/things.py: distance).
"""
from dataclasses import dataclass

import numpy as np

from datasets.synthetic import things
from datasets.synthetic.anatomy import Anatomy, grasp_pose, sample_pose, unit

TABLE_HEIGHT_M = (0.05, 0.24)  # of the middle of the hand over the table
CENTRE = np.array([0.0, 0.0, 0.10])  # where the cameras look
TOUCH_M = -0.002  # how deep skin may press into a thing


@dataclass(frozen=True)
class Wish:
    """How a sequence is to be: frames, seconds, shares (probabilities) of its special cases, how many idle things lie about,
    and how far the hand roams."""

    frames: int
    seconds: float
    no_hand: float
    leaving: float
    grasps: float
    idle: tuple[int, int]
    roam_m: float = 0.06  # standard deviation of the hand's place in each direction


@dataclass
class Clip:
    """One sequence in the table frame, t frames, n things. present (t) · angles (t,15,3) of the fingers · turn (t,3,3) hand to
    table · wrist (t,3) · elbow (t,3) unit, from wrist to elbow · ids (n) · places (t,n,4,4) thing to table · grasped: place
    in ids · held (t) whether the grasped thing moves with the hand.
    """

    present: np.ndarray
    angles: np.ndarray
    turn: np.ndarray
    wrist: np.ndarray
    elbow: np.ndarray
    ids: list[int]
    places: np.ndarray
    grasped: int
    held: np.ndarray


@dataclass(frozen=True)
class Grasp:
    """How the hand holds the thing: turn (3,3) and wrist (3) of the hand at the touch, place (4,4) of the thing, closing (5)."""

    turn: np.ndarray
    wrist: np.ndarray
    place: np.ndarray
    closing: np.ndarray


def ease(s: np.ndarray) -> np.ndarray:
    """Minimum-jerk course from 0 to 1."""
    s = np.clip(s, 0, 1)
    return s**3 * (10 - 15 * s + 6 * s * s)


def blend(times: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values (k,...) at key times (k) carried to `times` (t): minimum jerk from key to key, with a short rest at each."""
    i = np.clip(np.searchsorted(keys, times, side="right") - 1, 0, len(keys) - 2)
    s = ease(1.15 * (times - keys[i]) / (keys[i + 1] - keys[i]))
    s = s.reshape(-1, *[1] * (values.ndim - 1))
    return values[i] * (1 - s) + values[i + 1] * s


def nearest_rotations(matrices: np.ndarray) -> np.ndarray:
    """Rotations (...,3,3) nearest to blended ones."""
    u, _, vt = np.linalg.svd(matrices)
    vt[..., 2, :] *= np.sign(np.linalg.det(u @ vt))[..., None]
    return u @ vt


def hand_turn(hand: Anatomy, forward: np.ndarray, palm: np.ndarray) -> np.ndarray:
    """Rotation (3,3), model to table, that points the fingers along `forward` and the palm towards `palm` (made orthogonal)."""
    forward = unit(forward)
    palm = unit(palm - forward * (palm @ forward))
    side = hand.sign * np.cross(forward, palm)
    return np.stack([forward, side, palm], 1) @ np.stack([hand.forward, hand.side, hand.palm], 1).T


def _direction(azimuth: float, elevation: float) -> np.ndarray:
    return np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])


def _free_turn(hand: Anatomy, seat: float, rng: np.random.Generator) -> np.ndarray:
    """Fingers away from the person, more down than up; palm down, sideways (thumb up) or, now and then, up."""
    forward = _direction(seat + np.pi + np.clip(rng.normal(0, 0.5), -1.1, 1.1), np.clip(rng.normal(-0.25, 0.4), -1.1, 0.7))
    down = np.array([0, 0, -1.0])
    down = unit(down - forward * (down @ forward))
    roll = [rng.normal(0.25, 0.4), rng.normal(1.35, 0.4), rng.normal(2.6, 0.4)][rng.choice(3, p=[0.5, 0.33, 0.17])]
    side = hand.sign * np.cross(forward, down)
    return hand_turn(hand, forward, np.cos(roll) * down + np.sin(roll) * side)


def _keys(rng: np.random.Generator, start: float, end: float, step: float) -> np.ndarray:
    """Key times that cover [start, end]."""
    count = max(2, round((end - start) / step) + 1)
    keys = np.linspace(start, end, count)
    keys[1:-1] += rng.uniform(-0.25, 0.25, count - 2) * (keys[1] - keys[0])
    return keys


def frame_times(wish: Wish, rng: np.random.Generator) -> np.ndarray:
    """Times (t), seconds: evenly over the sequence; a single frame falls anywhere."""
    step = wish.seconds / wish.frames
    return (np.arange(wish.frames) + rng.uniform(0, 1)) * step


def plan(wish: Wish, hand: Anatomy, contact, seat: float, number: int, rng: np.random.Generator) -> Clip:
    """Make up a sequence about the thing of YCB id `number`.

    contact(hand frame pose (4,4) of the thing, number) -> closing (5) at which the fingers touch it.
    """
    times = frame_times(wish, rng)
    absent = int(np.floor(wish.frames * rng.uniform(0, 2 * wish.no_hand) + rng.uniform())) if wish.no_hand else 0
    present = np.arange(wish.frames) >= absent
    ids, places = _table(number, wish.idle, rng)
    places = np.repeat(places[None], wish.frames, 0)
    start = times[min(absent, wish.frames - 1)]
    held = np.zeros(wish.frames, bool)
    if rng.uniform() < wish.grasps:
        grasp = sample_grasp(hand, contact, number, seat, places[0, 0], rng)
        angles, turn, wrist, touch = _grasp_course(hand, grasp, times, start, wish.seconds, wish.roam_m, rng)
        held = times >= touch
        thing_from_hand = _inverse(_pose(grasp.turn, grasp.wrist)) @ grasp.place
        places[:, 0] = np.where(held[:, None, None], _pose(turn, wrist) @ thing_from_hand, grasp.place)
    else:
        angles, turn, wrist = _free_course(hand, times, start, wish.seconds, seat, wish.roam_m, rng)
    if rng.uniform() < wish.leaving:
        away = _direction(seat + rng.uniform(-1.3, 1.3), 0.0) * rng.uniform(0.2, 0.34)
        share = ease((times - rng.uniform(start, wish.seconds)) / 0.5)
        wrist = wrist + away * share[:, None]
        places[:, 0, :3, 3] += away * share[:, None] * held[:, None]
    if absent and wish.frames / wish.seconds > 5:  # it comes in from the person's side
        shift = _direction(seat, 0.15) * 0.42 * (1 - ease((times - start) / 0.55))[:, None]
        wrist = wrist + shift
        places[:, 0, :3, 3] += shift * held[:, None]
    return Clip(present, angles, turn, wrist, _elbow(hand, turn, seat, rng), ids, places, 0, held)


def _table(number: int, idle: tuple[int, int], rng: np.random.Generator) -> tuple[list[int], np.ndarray]:
    """The thing in the middle, and idle ones about it: ids (n), places (n,4,4), standing or lying flat on the table."""
    others = rng.permutation([i for i in things.IDS if i != number])[:rng.integers(idle[0], idle[1] + 1)]
    ids, spots = [int(number)], [np.append(rng.normal(0, 0.025, 2), 0)]
    for other in others:
        for _ in range(20):
            spot = _direction(rng.uniform(0, 2 * np.pi), 0) * rng.uniform(0.15, 0.30)
            if all(np.linalg.norm(spot - s) > 0.12 for s in spots):
                ids.append(int(other))
                spots.append(spot)
                break
    places = []
    for one, spot in zip(ids, spots):
        size, turn = things.SIZES[one][1], _about_z(rng.uniform(0, 2 * np.pi))
        height = size[2] / 2
        if one == things.MARKER or (one != number and size[2] > 0.1 and rng.uniform() < 0.25):
            turn, height = turn @ things.LYING, size[0] / 2
        places.append(_pose(turn, spot + [0, 0, height]))
    return ids, np.stack(places)


def _about_z(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def _pose(turn: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Rigid maps (...,4,4)."""
    matrix = np.zeros((*np.broadcast_shapes(turn.shape[:-2], place.shape[:-1]), 4, 4))
    matrix[..., :3, :3], matrix[..., :3, 3], matrix[..., 3, 3] = turn, place, 1
    return matrix


def _inverse(pose: np.ndarray) -> np.ndarray:
    turn = np.swapaxes(pose[..., :3, :3], -1, -2)
    return _pose(turn, -(turn @ pose[..., :3, 3:])[..., 0])


def sample_grasp(hand: Anatomy, contact, number: int, seat: float, lying: np.ndarray, rng: np.random.Generator) -> Grasp:
    """From the side with the thumb up (upright round things and poles), or from above."""
    kind, size = things.SIZES[number]
    spot = lying[:3, 3] * [1, 1, 0]
    azimuth = seat + np.pi + rng.normal(0, 0.3)
    if kind != "ellipsoid" and size[2] > 0.075 and number != things.MARKER:
        forward = _direction(azimuth, 0.0)
        turn = hand_turn(hand, forward, -hand.sign * np.cross(forward, [0, 0, 1.0]))  # thumb side up
        reach = size[1] / 2 + 0.004  # the thin side along the fingers, which wrap around it
        height = np.clip(size[2] * rng.uniform(0.45, 0.75), 0.05, size[2])
        touch = spot - turn @ hand.palm * reach - forward * rng.uniform(0.0, 0.015) + [0, 0, height]
        place = _pose(_about_z(azimuth), spot + [0, 0, size[2] / 2])
    else:
        turn = hand_turn(hand, _direction(azimuth, rng.normal(-0.15, 0.1)), np.array([0, 0, -1.0]))
        across = 0 if size[0] <= size[1] and number != things.MARKER else np.pi / 2
        middle = lying[2, 3]  # half the height of the thing as it lies
        touch = spot - turn @ hand.forward * rng.uniform(0.03, 0.045) + [0, 0, max(2 * middle + 0.012, 0.05)]
        lying_turn = things.LYING if number == things.MARKER else np.eye(3)
        place = _pose(_about_z(azimuth + across) @ lying_turn, spot + [0, 0, middle])
    wrist = touch - turn @ (hand.palm_point - hand.joints[0])
    closing = contact(_inverse(_pose(turn, wrist)) @ place, number)
    return Grasp(turn, wrist, place, closing)


def _grasp_course(hand: Anatomy, grasp: Grasp, times: np.ndarray, start: float, end: float, roam_m: float,
                  rng: np.random.Generator):
    """Reach, touch, lift and show: angles, turn, wrist over the frames, and the time of the touch."""
    touch = start + (end - start) * rng.uniform(0.3, 0.5)
    before = max(touch - 0.25, 0.5 * (start + touch))
    lift = _keys(rng, touch + 0.12, max(end, touch + 0.5), 0.6)[1:]
    keys = np.concatenate([[start - 0.2, before, touch, touch + 0.12], lift])
    back = -(grasp.turn @ (hand.palm * 0.8 + hand.forward * 0.6))
    wrists = [grasp.wrist + back * rng.uniform(0.10, 0.18) + rng.normal(0, 0.02, 3), grasp.wrist + back * 0.025]
    turns = [_jitter(grasp.turn, 0.35, rng), _jitter(grasp.turn, 0.08, rng)]
    wrists += [grasp.wrist] * 2 + [grasp.wrist + rng.normal(0, roam_m, 3) + [0, 0, rng.uniform(0.03, 0.16)] for _ in lift]
    turns += [grasp.turn] * 2 + [_jitter(grasp.turn, 0.5, rng) for _ in lift]
    spread = rng.uniform(0, 0.5)
    ready, closed = grasp_pose(grasp.closing * 0.35, 0.8), grasp_pose(grasp.closing, spread)
    angles = np.stack([sample_pose(rng), ready, closed, closed] + [closed] * len(lift))
    turn = nearest_rotations(blend(times, keys, np.stack(turns)))
    return blend(times, keys, angles), turn, blend(times, keys, np.stack(wrists)), touch


def _free_course(hand: Anatomy, times: np.ndarray, start: float, end: float, seat: float, roam_m: float,
                 rng: np.random.Generator):
    """Gestures over the table: angles, turn, wrist over the frames."""
    keys = _keys(rng, start - 0.2, max(end, start + 0.5), 0.7)
    angles = np.stack([sample_pose(rng) for _ in keys])
    turns = [_free_turn(hand, seat, rng)]
    for _ in keys[1:]:
        turns.append(_jitter(turns[-1], 0.45, rng) if rng.uniform() < 0.6 else _free_turn(hand, seat, rng))
    height = np.mean(TABLE_HEIGHT_M) + (rng.uniform(*TABLE_HEIGHT_M, (len(keys), 1)) - np.mean(TABLE_HEIGHT_M)) * roam_m / 0.06
    middle = np.concatenate([rng.normal(0, roam_m, (len(keys), 2)), height], 1)
    turn = nearest_rotations(blend(times, keys, np.stack(turns)))
    return blend(times, keys, angles), turn, blend(times, keys, middle) - turn @ (hand.palm_point - hand.joints[0])


def _jitter(turn: np.ndarray, spread: float, rng: np.random.Generator) -> np.ndarray:
    """The rotation turned further by a random one of about `spread` radians."""
    x, y, z = rng.normal(0, spread / np.sqrt(3), 3)
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return nearest_rotations(turn @ (np.eye(3) + skew + skew @ skew / 2))


def _elbow(hand: Anatomy, turn: np.ndarray, seat: float, rng: np.random.Generator) -> np.ndarray:
    """Unit directions (t,3) from wrist to elbow: towards the person and a little up, as far as the wrist bends."""
    straight = -(turn @ hand.forward)
    wanted = _direction(seat + rng.normal(0, 0.25), rng.uniform(0.1, 0.5))
    cosine = np.clip(straight @ wanted, -1, 1)
    angle = np.arccos(cosine)
    across = unit(wanted - straight * cosine[:, None])
    bend = np.minimum(angle, 0.95)[:, None]
    return straight * np.cos(bend) + across * np.sin(bend)
