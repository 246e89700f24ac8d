"""Identity files: what is written comes back, and what is broken or of another hand is refused in one line."""
import json
from types import SimpleNamespace

import numpy as np
import pytest

from src.identity import Identity, load_identities, read_identity, require_apart, write_identity
from utils.errors import InputError

HAND = SimpleNamespace(name="free_hand_right", sha256="ab" * 32, side="right")
OTHER = SimpleNamespace(name="MANO_RIGHT", sha256="cd" * 32, side="right")
LEFT = SimpleNamespace(name="free_hand_left", sha256="ef" * 32, side="left")
NEW = dict(cue="ruler", side="right", effective_n=3.5, mesh_sd_mm=0.8, vertex_sd_mm=np.linspace(0, 1, 778),
           stop={"enough": True, "text": "enough"})


def an_identity(subject: int = 8, **changes) -> Identity:
    """A full identity file's content, some fields changed."""
    generator = np.random.default_rng(subject)
    values = dict(subject=subject, shape=generator.normal(size=10).astype(np.float32),
                  hand={"name": HAND.name, "sha256": HAND.sha256}, n=20, method="random",
                  covariance=np.eye(10), confidence_used=False, standard_error=np.full(10, 0.1),
                  spread={"shape_std": [0.4] * 10, "rest_mesh_mm": 3.2}, settings={"seed": 0}, source={"predictions": "a.npz"},
                  frames=("s/a/0.jpg", "s/a/1.jpg"))
    return Identity(**{**values, **changes})


def test_round_trip_is_exact(tmp_path):
    """Every field comes back equal, the float32 coefficients bit for bit."""
    written = an_identity()
    write_identity(tmp_path / "8.json", written)
    found = read_identity(tmp_path / "8.json", HAND)
    assert (found.shape.astype(np.float32) == written.shape).all()
    assert (found.covariance == written.covariance).all() and (found.standard_error == written.standard_error).all()
    for key in ("subject", "hand", "n", "method", "confidence_used", "spread", "settings", "source", "frames"):
        assert getattr(found, key) == getattr(written, key)


def test_uncertainty_comes_back(tmp_path):
    """What version 2 added comes back equal, and a file of version 1, which lacks it, is read with nothing in its place."""
    path = tmp_path / "8.json"
    write_identity(path, an_identity(**NEW))
    found = read_identity(path, HAND)
    assert (found.vertex_sd_mm == NEW["vertex_sd_mm"]).all()
    assert all(getattr(found, key) == NEW[key] for key in NEW.keys() - {"vertex_sd_mm"})
    old = {key: value for key, value in json.loads(path.read_text()).items() if key not in NEW} | {"version": 1}
    path.write_text(json.dumps(old))
    found = read_identity(path, HAND)
    assert all(getattr(found, key) is None for key in NEW) and found.n == 20
    path.write_text(json.dumps(old | {"cue": "ruler"}))
    with pytest.raises(InputError, match="has the unknown cue"):
        read_identity(path, HAND)


def test_another_side_is_refused(tmp_path):
    """A shape of a right hand model with a left one: one line that says so."""
    write_identity(tmp_path / "8.json", an_identity(**NEW))
    with pytest.raises(InputError, match="8.json: a shape of a right hand model, but the one in use is a left hand"):
        read_identity(tmp_path / "8.json", LEFT)


def test_another_hand_model_is_refused(tmp_path):
    """A shape of one hand model with another: one line that names both."""
    write_identity(tmp_path / "8.json", an_identity())
    with pytest.raises(InputError, match="8.json: a shape of the hand model free_hand_right .* in use is MANO_RIGHT"):
        read_identity(tmp_path / "8.json", OTHER)


@pytest.mark.parametrize(("change", "message"), [
    ({"shape": [0.0] * 9}, "shape: expected 10 finite numbers"),
    ({"shape": [0.0] * 9 + ["x"]}, "shape: expected 10 finite numbers"),
    ({"shape": None}, "shape: expected 10 finite numbers"),
    ({"shape": [[0.0] * 10]}, "shape: expected 10 finite numbers"),
    ({"shape": [True] * 10}, "shape: expected 10 finite numbers"),
    ({"covariance": [[0.0] * 10] * 9}, "covariance: expected 10 x 10 finite numbers"),
    ({"n": -1}, "n: expected a whole number from 0 up"),
    ({"n": 2.5}, "n: expected a whole number"),
    ({"subject": "anna"}, "subject: expected a whole number"),
    ({"hand": {"name": "free"}}, "hand: expected the hand model's name and sha256"),
    ({"frames": "all"}, "frames: expected a list of names"),
    ({"version": 99}, "expected version 2 or 1 of identity files, found 99"),
    ({"vertex_sd_mm": [0.1] * 777}, "vertex_sd_mm: expected 778 finite numbers"),
    ({"mesh_sd_mm": "small"}, "mesh_sd_mm: expected a finite number, or null"),
    ({"side": "both"}, "side: expected right, left or null"),
    ({"cue": 3}, "cue: expected a text, or null"),
    ({"stop": "enough"}, "stop: expected an object, or null"),
    ({"kind": "calibration"}, "expected an identity file"),
    ({"colour": "blue"}, "has the unknown colour"),
])
def test_wrong_fields_are_named(tmp_path, change, message):
    """One wrong field at a time: the line names the file and the field."""
    path = tmp_path / "8.json"
    write_identity(path, an_identity())
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=message) as caught:
        read_identity(path, HAND)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [
    "", "[1, 2]", '"identity"', '{"kind": "identity"', "\x00\xff", '{"kind": "identity", "version": 1}'])
def test_files_that_are_no_identity(tmp_path, text):
    """Empty, cut short, another json, too few fields: one line each."""
    path = tmp_path / "8.json"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(InputError, match="8.json"):
        read_identity(path)


def test_nan_in_the_file(tmp_path):
    """Python's json reads NaN; an identity file with one is refused all the same."""
    path = tmp_path / "8.json"
    write_identity(path, an_identity(covariance=None))
    path.write_text(json.dumps({**json.loads(path.read_text()), "shape": [float("nan")] * 10}))
    with pytest.raises(InputError, match="shape: expected 10 finite numbers"):
        read_identity(path)


def test_folder_list_and_single_file(tmp_path):
    """A folder (its companion files aside), a list and one file give the same shapes by person; doubles are refused."""
    for subject in (8, 9):
        write_identity(tmp_path / f"{subject}.json", an_identity(subject))
    (tmp_path / "curve.json").write_text('{"kind": "calibration curve"}')
    (tmp_path / "calibration.json").write_text('{"kind": "calibration"}')
    shapes = load_identities(tmp_path, HAND)
    assert sorted(shapes) == [8, 9] and shapes[9].shape == (10,)
    assert (load_identities([tmp_path / "9.json"])[9] == shapes[9]).all() and sorted(load_identities(tmp_path / "8.json")) == [8]
    write_identity(tmp_path / "again.json", an_identity(8))
    with pytest.raises(InputError, match="subject 8 has a shape already"):
        load_identities(tmp_path, HAND)


def test_folder_without_or_with_other_files(tmp_path):
    """An empty folder, a folder that is not there, and a json that is something else: one line each."""
    with pytest.raises(InputError, match="expected identity files"):
        load_identities(tmp_path)
    with pytest.raises(InputError, match="nowhere"):
        load_identities(tmp_path / "nowhere")
    (tmp_path / "scores.json").write_text("{}")
    with pytest.raises(InputError, match="scores.json: expected an identity file"):
        load_identities(tmp_path)


def test_shared_frames_are_refused():
    """Frames that calibrate and are scored: refused with the count and the first name; disjoint ones pass."""
    require_apart(["a/1", "a/2"], ["b/1"], "x")
    with pytest.raises(InputError, match="x: 1 of 2 calibration frames are scored as well .first: a/2."):
        require_apart(["a/1", "a/2", "a/2"], ["a/2", "b/1"], "x")
