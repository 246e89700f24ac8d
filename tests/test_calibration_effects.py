"""The mixed model of a network's answers against the same model written out as one dense Gaussian."""
import numpy as np
import pytest
from calibration_cases import OVERSTATED, Network

from src.calibration_effects import Effects, Images, groups_of, moments, person_mean
from src.calibration_likelihood import fit_effects, images_of, start_effects

NETWORK = Network()


def dense(images: Images, effects: Effects) -> np.ndarray:
    """(10 n, 10 n) covariance of all answers about mu, image by image."""
    n, blocks = len(images), {"sequence": images.sequence, "camera": images.camera, "recording": images.recording}
    total = np.zeros((n, 10, n, 10))
    for name, ids in blocks.items():
        total += np.einsum("ab,ij->aibj", (ids[:, None] == ids).astype(float), getattr(effects, name))
    for i in range(n):
        total[i, :, i] += images.roots[i] @ effects.image @ images.roots[i]
    return total.reshape(10 * n, 10 * n)


@pytest.fixture
def images() -> Images:
    """Nineteen of a person's answers, groups of unequal size."""
    person = NETWORK.people(0, 1)[0]
    return images_of(person, 1.0, None).take(np.random.default_rng(3).permutation(len(person))[:19])


def test_person_mean_is_generalised_least_squares(images):
    """mu and its covariance against the dense formula."""
    inverse = np.linalg.inv(dense(images, NETWORK.effects))
    design = np.tile(np.eye(10), (len(images), 1))
    expected = np.linalg.inv(design.T @ inverse @ design)
    mean, covariance = person_mean(images, NETWORK.effects)
    np.testing.assert_allclose(covariance, expected, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(mean, expected @ design.T @ inverse @ images.means.ravel(), rtol=1e-5, atol=1e-7)


def test_likelihood_is_the_dense_one(images):
    """Restricted log-likelihood: differences between two sets of covariances against the dense formula."""
    design, found, expected = np.tile(np.eye(10), (len(images), 1)), [], []
    for effects in (NETWORK.effects, Network(sequence=0.5, camera=0.1, seed=9).effects):
        total = dense(images, effects)
        inverse = np.linalg.inv(total)
        gram = design.T @ inverse @ design
        residual = images.means.ravel() - design @ np.linalg.solve(gram, design.T @ inverse @ images.means.ravel())
        expected.append(-0.5 * (np.linalg.slogdet(total)[1] + np.linalg.slogdet(gram)[1] + residual @ inverse @ residual))
        found.append(moments(images, effects).loglik)
    np.testing.assert_allclose(found[0] - found[1], expected[0] - expected[1], rtol=1e-4)


def test_moments_are_conditional_expectations(images):
    """E step: second moments of every effect against conditioning of the dense Gaussian (mu with a very wide prior)."""
    effects, n = NETWORK.effects, len(images)
    inverse = np.linalg.inv(dense(images, effects) + np.kron(np.ones((n, n)), 1e5 * np.eye(10)))
    found = moments(images, effects)
    for name in ("sequence", "camera", "recording"):
        ids, prior, expected = getattr(images, name), getattr(effects, name), np.zeros((10, 10))
        for one in range(ids.max() + 1):
            across = np.kron((ids == one).astype(float), prior)  # covariance of this effect with all answers
            mean = across @ inverse @ images.means.ravel()
            expected += prior - across @ inverse @ across.T + np.outer(mean, mean)
        np.testing.assert_allclose(found.sums[name], expected, atol=2e-4)
        assert found.counts[name] == ids.max() + 1
    expected = np.zeros((10, 10))
    for i in range(n):
        across = np.zeros((10, 10 * n))
        across[:, 10 * i:10 * i + 10] = effects.image @ images.roots[i]  # of the image's own error, in stated units
        mean = across @ inverse @ images.means.ravel()
        expected += effects.image - across @ inverse @ across.T + np.outer(mean, mean)
    np.testing.assert_allclose(found.sums["image"], expected, atol=2e-4)


def test_fit_raises_the_likelihood_and_finds_the_spreads():
    """EM from its start: every step raises the restricted likelihood, and the standard deviations come out within 20 %."""
    people = [images_of(person, 1.0, None) for person in NETWORK.people(1, 24)]
    effects, last = start_effects(people), -np.inf
    for _ in range(5):
        effects, loglik = fit_effects(people, effects, 2)
        assert loglik > last
        last = loglik
    effects, _ = fit_effects(people, effects, 80)
    for name, scale in (("sequence", 0.3), ("camera", 0.2), ("recording", 0.15), ("image", OVERSTATED**-0.5)):
        np.testing.assert_allclose(np.sqrt(np.trace(getattr(effects, name)) / 10), scale, rtol=0.2, err_msg=name)


def test_groups_follow_folders():
    """<...>/<sequence>/<camera>/<frame>, fewer folders, and photographs without any."""
    sequence, camera, recording = groups_of(np.array([f"p/{s}/{c}/{f}.jpg" for s in "ab" for c in "xyz" for f in "01"]))
    assert len(set(sequence)) == 2 and len(set(camera)) == 3 and len(set(recording)) == 6
    for groups in groups_of(np.array(["clip.mp4/0", "clip.mp4/1", "other/2"])):
        assert groups.tolist() == [0, 0, 1]
    for groups in groups_of(np.array(["a.jpg", "b.jpg", "c.jpg"])):
        assert len(set(groups.tolist())) == 3
