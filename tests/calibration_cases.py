"""A simulated network for calibration tests: it answers nearer to the mean hand than the truth, and errs by person, sequence,
camera, recording and image, with a stated covariance that is right up to a factor."""
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from src.calibration_effects import Effects
from src.calibration_people import Person
from utils.hand import HandModel
from utils.predictions import PredictionsWriter

OVERSTATED = 1.7  # the network's stated variance, times its true one


def covariance(rng: np.random.Generator, scale: float, mixed: float = 0.3) -> np.ndarray:
    """A (10,10) covariance of standard deviations `scale`, its coefficients correlated."""
    factor = rng.normal(size=(10, 10))
    found = factor @ factor.T
    root = np.sqrt(np.diag(found))
    return scale**2 * ((1 - mixed) * np.eye(10) + mixed * found / np.outer(root, root))


@dataclass
class Network:
    """How the simulated network errs; standard deviations of the shared errors, and the range of the images' own."""

    person: float = 0.25
    sequence: float = 0.3
    camera: float = 0.2
    recording: float = 0.15
    images: tuple[float, float] = (0.2, 0.9)
    slope: np.ndarray = field(default_factory=lambda: np.linspace(0.4, 0.8, 10))
    seed: int = 7

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        self.offset = 0.2 * rng.normal(size=10)
        self.person_covariance = covariance(rng, self.person)
        self.effects = Effects(*(covariance(rng, scale) for scale in (self.sequence, self.camera, self.recording)),
                               image=covariance(rng, 1.0))

    def answers(self, rng: np.random.Generator, shape: np.ndarray, subject: int, sequences: int = 6, cameras: int = 4,
                frames: int = 2) -> Person:
        """Its answers about one person with this shape."""
        def draw(covariance: np.ndarray, *size: int) -> np.ndarray:
            return rng.multivariate_normal(np.zeros(10), covariance, size=size, method="cholesky")

        spread = rng.uniform(*self.images, size=(sequences, cameras, frames, 1))
        means = (self.offset + self.slope * shape + draw(self.person_covariance)
                 + draw(self.effects.sequence, sequences)[:, None, None] + draw(self.effects.camera, cameras)[:, None]
                 + draw(self.effects.recording, sequences, cameras)[:, :, None]
                 + spread * draw(self.effects.image, sequences, cameras, frames))
        names = [f"subject-{subject}/seq_{s}/cam_{c}/{f}.jpg"
                 for s in range(sequences) for c in range(cameras) for f in range(frames)]
        stated = OVERSTATED * spread.reshape(-1, 1, 1) ** 2 * np.eye(10)
        means = means.reshape(-1, 10).astype(np.float32)
        return Person(subject, np.array(names), np.arange(len(names)), means, stated, None, shape)

    def people(self, seed: int, count: int, first: int = 0, **size: int) -> list[Person]:
        """People drawn from the prior, and its answers about them."""
        rng = np.random.default_rng(seed)
        return [self.answers(rng, rng.normal(size=10), first + i, **size) for i in range(count)]


def write_people(path: Path, people: list[Person], hand: HandModel, *, covariances: bool = True, dataset: str = "simulated",
                 checkpoint: str = "run/last.pt", truth: bool = True) -> Path:
    """A predictions file of these people; meshes are zero, calibration never looks at them."""
    meta = {"method": "idhand", "hand": hand.info, "dataset": {"dataset": dataset}, "checkpoint": checkpoint}
    with PredictionsWriter(path, meta) as writer:
        for person in people:
            n = len(person)
            columns = {"pred_shape_cov": person.covariances} if covariances else {}
            if truth:
                columns["true_shape"] = np.tile(person.true_shape, (n, 1))
            writer.append(name=person.names.tolist(), pred_verts=np.zeros((n, 778, 3)), pred_joints=np.zeros((n, 21, 3)),
                          subject=np.full(n, person.subject), index=np.arange(n), mirrored=np.zeros(n, bool),
                          pred_shape=person.shapes, **columns)
    return path
