"""Synthetic people: drawn from the hand model's prior, and named like DexYCB's, however many they are."""
from datetime import datetime
from pathlib import Path

import numpy as np

from datasets.dex_ycb_tree import scan
from datasets.synthetic.dexycb_files import (
    SERIALS,
    SUBJECTS,
    intrinsics_yml,
    mano_calib,
    mano_yml,
    meta_yml,
    sequence_name,
    subject_name,
)
from datasets.synthetic.people import Side, make_people
from utils.hand import HandModel

HAND = Path(__file__).resolve().parent.parent / "template/free_hand_right.npz"


def test_people_of_the_prior():
    """Without sizes, shapes are standard normal (cut at 3), the same for the same seed; the size is the shape's."""
    side = Side(HandModel.load(HAND).double())
    people = make_people(300, None, side, seed=4)
    shapes = np.array([person.shape for person in people])
    assert np.abs(shapes.mean(0)).max() < 0.25 and np.abs(shapes.std(0) - 1).max() < 0.2 and np.abs(shapes).max() <= 3
    assert np.abs(np.corrcoef(shapes.T) - np.eye(10)).max() < 0.25
    assert [person.size_mm for person in people[:5]] == [side.size_mm(shape) for shape in shapes[:5]]
    assert np.array_equal(shapes, [person.shape for person in make_people(300, None, side, seed=4)])
    assert not np.array_equal(shapes, [person.shape for person in make_people(300, None, side, seed=5)])


def test_names_of_many_people(tmp_path):
    """Names beyond the real ten are unique, sorted and a real date each, and the tree's scan gives everyone their own place."""
    names = [subject_name(person) for person in range(400)]
    assert len(set(names)) == 400 and names == sorted(names) and names[:10] == list(SUBJECTS)
    assert [name[9:] for name in names[10:]] == [f"subject-{person + 1}" for person in range(10, 400)]
    assert all(datetime.strptime(name[:8], "%Y%m%d") for name in names)
    for person in range(120):
        files = {f"{subject_name(person)}/{sequence_name(person, 0)}/meta.yml": meta_yml(person, 1, 0, [1], 0, "right"),
                 f"calibration/mano_{mano_calib(person)}/mano.yml": mano_yml(np.full(10, person)),
                 f"calibration/intrinsics/{SERIALS[0]}_160x120.yml": intrinsics_yml(np.diag([100.0, 100.0, 1.0]))}
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
    found = scan(tmp_path, SERIALS, 160, 120)
    assert found.people == tuple(names[:120])
    assert [(s.subject, s.betas[0]) for s in found.sequences] == [(person, person) for person in range(120)]
