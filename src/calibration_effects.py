"""The mean answer of a network for one person, from images that err alike: a linear mixed model, solved exactly.

The network's shape for image i of a person is  m_i = mu + v_sequence + w_camera + x_recording + e_i:  what it answers for this
person on average, what it gets wrong in all images of one sequence, from one camera, in one sequence seen by one camera, and in
this image alone. All are Gaussian with zero mean; e_i has the covariance S_i R S_i, S_i from the network's own stated
covariance (src/calibration_likelihood.py). mu has no prior here. Precisions add up, so nothing of size (images)^2 is built:
recordings are eliminated one by one, the rest is one system of 10 (1 + sequences + cameras) unknowns.
"""
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from scipy import linalg

SIZE = 10
TINY = 1e-8  # least variance of an effect: keeps its precision finite where the data show none of it


@dataclass(frozen=True)
class Effects:
    """Covariances (10,10) of the network's errors that images share by sequence, by camera, by recording, and of single images
    (R: in units of the network's own stated spread)."""

    sequence: np.ndarray
    camera: np.ndarray
    recording: np.ndarray
    image: np.ndarray

    def shared(self) -> np.ndarray:
        """(10,10) all that one image shares with others of its kind."""
        return self.sequence + self.camera + self.recording

    @cached_property
    def precisions(self) -> dict[str, np.ndarray]:
        """Inverses, by name."""
        return {f.name: np.linalg.inv(getattr(self, f.name) + TINY * np.eye(SIZE)) for f in fields(self)}

    @cached_property
    def log_precisions(self) -> dict[str, float]:
        """Logarithms of their determinants."""
        return {name: float(np.linalg.slogdet(value)[1]) for name, value in self.precisions.items()}


@dataclass(frozen=True)
class Images:
    """One person's images: means (n,10), roots S (n,10,10) symmetric with their inverses, and ids from 0 of each one's sequence,
    camera, recording."""

    means: np.ndarray
    roots: np.ndarray
    inverse_roots: np.ndarray
    sequence: np.ndarray
    camera: np.ndarray
    recording: np.ndarray

    def __len__(self) -> int:
        return len(self.means)

    @cached_property
    def log_scale(self) -> float:
        """Logarithm of the product of the squared determinants of the inverse roots."""
        return 2 * float(np.linalg.slogdet(self.inverse_roots)[1].sum())

    def take(self, rows: np.ndarray) -> "Images":
        """Some of them, ids numbered anew."""
        ids = [np.unique(which[rows], return_inverse=True)[1] for which in (self.sequence, self.camera, self.recording)]
        return Images(self.means[rows], self.roots[rows], self.inverse_roots[rows], *ids)


def groups_of(names: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids from 0 of sequence, camera and recording of frames, by their folders: <...>/<sequence>/<camera>/<frame>.

    Frames in fewer than three folders have one recording, their folder, which is sequence and camera in one; a name without a
    folder is a photograph on its own.
    """
    sequences, cameras, recordings = [], [], []
    for row, name in enumerate(names.tolist()):
        parts = name.split("/")[:-1]
        recording = "/".join(parts) if parts else f"photograph {row}"
        apart = len(parts) >= 3
        sequences.append("/".join(parts[:-1]) if apart else recording)
        cameras.append(parts[-1] if apart else recording)
        recordings.append(recording)
    return tuple(np.unique(ids, return_inverse=True)[1] for ids in (sequences, cameras, recordings))


@dataclass(frozen=True)
class System:
    """Normal equations over mu, sequences and cameras: matrix (k,k), right side (k), and what leads back to recordings."""

    matrix: np.ndarray
    right: np.ndarray
    unknowns: np.ndarray  # (recordings, 3) block numbers: mu, sequence, camera
    precision: np.ndarray  # (recordings,10,10) sum of its images' precisions
    mean: np.ndarray  # (recordings,10) precision-weighted sum of its images
    leaves: np.ndarray  # (recordings,10,10) covariance of a recording's effect where all else is known
    of_image: np.ndarray  # (n,10,10) precision of every image


def system(images: Images, effects: Effects) -> System:
    """Set up the normal equations of one person."""
    precisions = effects.precisions
    of_image = images.inverse_roots @ precisions["image"] @ images.inverse_roots
    recordings, first = np.unique(images.recording, return_index=True)
    precision, mean = np.zeros((len(recordings), SIZE, SIZE)), np.zeros((len(recordings), SIZE))
    np.add.at(precision, images.recording, of_image)
    np.add.at(mean, images.recording, (of_image @ images.means[..., None])[..., 0])
    leaves = np.linalg.inv(precisions["recording"] + precision)
    kept = precision - precision @ leaves @ precision  # precision of mu + v + w as this recording has it
    right = mean - (precision @ (leaves @ mean[..., None]))[..., 0]
    sequences, cameras = images.sequence.max() + 1, images.camera.max() + 1
    unknowns = np.stack([np.zeros(len(recordings), int), 1 + images.sequence[first], 1 + sequences + images.camera[first]], 1)
    count = 1 + sequences + cameras
    blocks, side = np.zeros((count, count, SIZE, SIZE)), np.zeros((count, SIZE))
    for a in range(3):
        np.add.at(side, unknowns[:, a], right)
        for b in range(3):
            np.add.at(blocks, (unknowns[:, a], unknowns[:, b]), kept)
    for name, block in (("sequence", range(1, 1 + sequences)), ("camera", range(1 + sequences, count))):
        for i in block:
            blocks[i, i] += precisions[name]
    matrix = blocks.transpose(0, 2, 1, 3).reshape(SIZE * count, -1)
    return System(matrix, side.ravel(), unknowns, precision, mean, leaves, of_image)


def person_mean(images: Images, effects: Effects) -> tuple[np.ndarray, np.ndarray]:
    """mu (10) and its covariance (10,10): the network's answer for this person, had it seen the person for ever."""
    found = system(images, effects)
    factor = linalg.cho_factor(found.matrix[SIZE:, SIZE:], lower=True, check_finite=False)
    across = linalg.cho_solve(factor, found.matrix[SIZE:, :SIZE], check_finite=False)
    covariance = np.linalg.inv(found.matrix[:SIZE, :SIZE] - found.matrix[:SIZE, SIZE:] @ across)
    covariance = (covariance + covariance.T) / 2
    return covariance @ (found.right[:SIZE] - across.T @ found.right[SIZE:]), covariance


def total_covariance(images: Images, effects: Effects) -> np.ndarray:
    """(n,10,10) covariance of each image's answer about mu."""
    return effects.shared() + images.roots @ effects.image @ images.roots


@dataclass(frozen=True)
class Moments:
    """Expected second moments of one person's effects, given the images: sums (10,10) and how many went in; log-likelihood."""

    sums: dict[str, np.ndarray]
    counts: dict[str, int]
    loglik: float


def moments(images: Images, effects: Effects) -> Moments:
    """The E step of the fit: what the effects probably were (mu without a prior, so this is restricted maximum likelihood)."""
    found, sequences = system(images, effects), images.sequence.max() + 1
    factor = linalg.cholesky(found.matrix, lower=True, check_finite=False)
    inverse = linalg.cho_solve((factor, True), np.eye(len(factor)), check_finite=False)
    solution = (inverse @ found.right).reshape(-1, SIZE)
    blocks = inverse.reshape(len(solution), SIZE, len(solution), SIZE)
    sums, counts = {}, {}
    for name, which in (("sequence", range(1, 1 + sequences)), ("camera", range(1 + sequences, len(solution)))):
        sums[name] = sum(blocks[i, :, i] for i in which) + solution[which].T @ solution[which]
        counts[name] = len(which)
    a, b = found.unknowns[:, :, None], found.unknowns[:, None, :]
    spread = blocks[a, :, b].sum((1, 2))  # covariance of mu + v + w, by recording
    centre = solution[found.unknowns].sum(1)
    shrink = found.leaves @ found.precision
    recording = (found.leaves @ (found.mean - (found.precision @ centre[..., None])[..., 0])[..., None])[..., 0]
    sums["recording"] = (found.leaves + shrink @ spread @ shrink.transpose(0, 2, 1)).sum(0) + recording.T @ recording
    counts["recording"] = len(recording)
    keep = np.eye(SIZE) - shrink
    around = keep @ spread @ keep.transpose(0, 2, 1) + found.leaves
    residual = images.means - (centre + recording)[images.recording]
    inner = around[images.recording] + residual[:, :, None] * residual[:, None, :]
    sums["image"], counts["image"] = (images.inverse_roots @ inner @ images.inverse_roots).sum(0), len(images)
    return Moments(sums, counts, _loglik(images, effects, found, factor, solution))


def _loglik(images: Images, effects: Effects, found: System, factor: np.ndarray, solution: np.ndarray) -> float:
    """Restricted log-likelihood of one person's images, up to a constant that depends on their number alone."""
    precisions = effects.log_precisions
    sequences = images.sequence.max() + 1
    logdet = (sequences * precisions["sequence"] + (len(solution) - 1 - sequences) * precisions["camera"]
              + len(found.leaves) * precisions["recording"] + len(images) * precisions["image"] + images.log_scale
              + np.linalg.slogdet(found.leaves)[1].sum() - 2 * np.log(np.diag(factor)).sum())
    quadratic = (((found.of_image @ images.means[..., None])[..., 0] * images.means).sum()
                 - ((found.leaves @ found.mean[..., None])[..., 0] * found.mean).sum()
                 - found.right @ solution.ravel())
    return 0.5 * float(logdet - quadratic)
