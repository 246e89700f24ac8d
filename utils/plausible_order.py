"""Wrong orders in files of predicted joints: of the joints within a hand, and of the samples within the file.

The order of the joints shows in the lengths of the bones (an order that is not the file's own ties a fingertip to a knuckle) and
in the error against the truth. The order of the samples shows where every hand lies near some true hand, but not near its own:
a file of one answer for all, or of noise, is not like that and passes.
"""
import numpy as np
from jaxtyping import Float

from utils import metrics
from utils.joints import H21_FROM_T21, T21_PARENTS
from utils.plausible import MOST, Case, Fault, centred, error, hand_like, improved, rows_of, size

FEWEST = 10  # samples, below which no order of them is judged
QUERIES = 1000  # samples that are looked for among all true hands
PROBES = 64  # samples by which a part is looked for in the whole list
LAGS = (1, -1, 2, -2, 3, -3)


def _fingers(*bases: int, back: bool = False) -> list[int]:
    return [base + (3 - i if back else i) for base in bases for i in range(4)]


# Name -> index in T21 of each joint. The first two are the ones that an evaluation asks for.
ORDERS: dict[str, list[int]] = {
    "T21": list(range(21)),
    "H21": list(H21_FROM_T21),
    "MANO's 16 joints, then the tips of index, middle, little, ring finger and thumb": [*H21_FROM_T21[:16], 8, 12, 20, 16, 4],
    "wrist, index, middle, little, ring finger, thumb": [0, *_fingers(5, 9, 17, 13, 1)],
    "thumb last": [0, *_fingers(5, 9, 13, 17, 1)],
    "little finger first": [0, *_fingers(17, 13, 9, 5, 1)],
    "fingers from tip to base, as RHD has them": [0, *_fingers(1, 5, 9, 13, 17, back=True)],
    "fingers from tip to base and the wrist last, as InterHand2.6M has them": [*_fingers(1, 5, 9, 13, 17, back=True), 0],
}
SHOWN = {"T21": "T21 (wrist, thumb, index, middle, ring, little finger, each base to tip)",
         "H21": "H21 (MANO's 16 joints, then the tips from thumb to little finger)"}


def gather(to: str, of: str) -> list[int]:
    """Indices that put joints of the order `of` into the order `to`."""
    return [ORDERS[of].index(joint) for joint in ORDERS[to]]


def bones(t21: Float[np.ndarray, "n 21 3"]) -> Float[np.ndarray, "20"]:
    """Median length of each bone over the samples."""
    return np.median(np.linalg.norm(t21[:, 1:] - t21[:, list(T21_PARENTS[1:])], axis=2), axis=0)


def _unlike(lengths: np.ndarray, true: np.ndarray) -> float:
    """How far bone lengths are from the truth's, whatever the hand's size: 0 = the same."""
    scale = (lengths @ true) / max(lengths @ lengths, 1e-12)
    return float(np.linalg.norm(scale * lengths - true) / max(np.linalg.norm(true), 1e-12))


def joint_order(case: Case) -> Fault | None:
    """Joints in another known order than `case.order`."""
    some = rows_of(len(case.pred), QUERIES)
    pred, true = centred(case.pred[some]), centred(case.true[some])
    orders = {name: gather(case.order, name) for name in ORDERS if name != case.order}
    t21 = gather("T21", case.order)
    wanted, hand = bones(true[:, t21]), hand_like(true[:, t21])
    unlike = {name: _unlike(bones(pred[:, order][:, t21]), wanted) for name, order in {**orders, "": range(21)}.items()}
    other = min(orders, key=lambda name: error(pred[:, orders[name]], true))
    undone = pred[:, orders[other]]
    far_better = error(undone, true) < 0.7 * error(pred, true) and improved(pred, undone, true) > MOST
    far_better &= hand or len(some) >= FEWEST  # a few clouds of points resemble each other in some order by chance
    if not far_better or hand and unlike[other] > unlike[""]:
        other = min(orders, key=unlike.get)
        fits = [error(metrics.procrustes(p, true, reflections=True), true) for p in (pred, pred[:, orders[other]])]
        if not hand or unlike[""] < 0.2 or unlike[other] > 0.5 * unlike[""] or fits[1] > 0.9 * fits[0]:
            return None
    indices = str(orders[other]).replace(" ", "")
    return Fault(f"joints in another order, by the lengths of the bones ({SHOWN.get(other, other)} where {SHOWN[case.order]} is "
                 f"asked?): reorder each hand by joints[{indices}]", case.pred[:, orders[other]])


def sample_order(case: Case) -> Fault | None:
    """Samples in another order than the truth's: backwards, shifted, sorted as text, or any other."""
    n = len(case.pred)
    if n < FEWEST or size(case.pred) < 1e-3:
        return None
    pred, true = (centred(points).reshape(n, -1) for points in (case.pred, case.true))
    as_is = _apart(pred, true)
    number = np.arange(n)
    known = {"backwards": number[::-1], "sorted by their number as text": np.argsort(np.argsort(number.astype(str)))}
    known |= {f"{abs(lag)} place(s) too {'late' if lag > 0 else 'early'} in the list": np.roll(number, -lag) for lag in LAGS}
    for name, place in known.items():  # true i is the file's sample place[i]
        moved = _apart(pred[place], true)
        if np.median(moved) < 0.6 * np.median(as_is) and np.mean(moved < as_is) > MOST:
            first = np.flatnonzero(place != number)[0]
            return _disorder(f"samples {name} (true sample {first} is the file's {place[first]})", case.pred[place])
    return _any_order(case, pred, true, as_is)


def place_in(pred: Float[np.ndarray, "n k 3"], every: Float[np.ndarray, "m k 3"]) -> int:
    """Where a part of a list begins in the whole list of true hands: 0 unless another place fits it far better."""
    n, room = len(pred), len(every) - len(pred)
    if room <= 0 or n < FEWEST or size(pred) < 1e-3:
        return 0
    rows = rows_of(n, PROBES)
    points, true = (centred(p).reshape(len(p), -1) for p in (pred[rows], every))
    apart = np.array([np.median(_apart(points, true[start + rows])) for start in range(room + 1)])
    best = int(apart.argmin())
    better = np.mean(_apart(points, true[best + rows]) < _apart(points, true[rows]))
    return best if apart[best] < 0.5 * apart[0] and better > MOST else 0


def _any_order(case: Case, pred: np.ndarray, true: np.ndarray, as_is: np.ndarray) -> Fault | None:
    """Every hand near some true hand, each near another one, and none nearer its own than anyone's."""
    n = len(pred)
    chance = np.median(_apart(pred[np.random.default_rng(0).permutation(n)], true))
    varied = [np.median(np.linalg.norm(p - p.mean(0), axis=1)) for p in (pred, true)]
    if np.median(as_is) < 0.8 * chance or varied[0] < 0.5 * varied[1]:
        return None
    rows = rows_of(n, QUERIES)
    squared = (pred[rows] ** 2).sum(1)[:, None] - 2 * pred[rows] @ true.T + (true ** 2).sum(1)
    nearest = squared.argmin(1)
    apart = _apart(pred[rows], true[nearest])
    if np.median(apart) > 0.3 * chance or len(np.unique(nearest)) < 0.5 * len(rows):
        return None
    wrong = np.flatnonzero(nearest != rows)[0]
    return _disorder(f"samples in another order (the file's {rows[wrong]} is nearest to true sample {nearest[wrong]})", case.pred)


def _disorder(found: str, undone: np.ndarray) -> Fault:
    return Fault(f"{found}, counted from 0: was another list gone through, or one shuffled or sorted anew? write one entry for "
                 "each line of the official evaluation list, in its order", undone)


def _apart(pred: np.ndarray, true: np.ndarray) -> np.ndarray:
    """(n) root mean square distance of the joints, flat rows."""
    return np.linalg.norm(pred - true, axis=1) / np.sqrt(pred.shape[1] / 3)
