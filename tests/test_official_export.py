"""utils/official_predictions.py and utils/official_export.py: order, frame, numbers, agreement with `test`, memory, faults."""
import json
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import orjson
import pytest
from eval_cases import text_scores
from hypothesis import given
from hypothesis import strategies as st
from official_export_cases import HAND, official_points, random_columns, write_predictions, write_truth

from utils import official_score
from utils.batch import ROOT_BY
from utils.errors import InputError
from utils.official_export import export
from utils.official_predictions import CHUNK, official_chunks, short_decimals
from utils.official_protocols import PROTOCOLS
from utils.predictions import read_predictions
from utils.score import score

WHAT = ("freihand", "ho3d_v2", "ho3d_v3")


def read(path: Path) -> list[np.ndarray]:
    """The two lists of a pred.json or of the zip that holds it, float64."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            assert archive.namelist() == ["pred.json"]
            data = archive.read("pred.json")
    else:
        data = path.read_bytes()
    return [np.array(part) for part in json.loads(data)]


@pytest.mark.parametrize("root", ["pred", "true"])
@pytest.mark.parametrize("what", WHAT)
def test_file_holds_the_protocols_order_joints_and_axes(what, root, tmp_path, monkeypatch):
    """pred.json row by row against the definition, exact in float32: shuffled, mirrored, in chunks that do not divide n."""
    monkeypatch.setattr("utils.official_predictions.CHUNK", 7)
    monkeypatch.setattr("utils.official_predictions.SCATTERED", 3)
    columns = random_columns(lefts=True)
    file = write_predictions(tmp_path / "p.npz", what, columns)
    text = export(what, file, tmp_path / "pred.json", root=root)
    for found, expected in zip(read(tmp_path / "pred.json"), official_points(columns, what, "pred", root)):
        np.testing.assert_array_equal(found.astype(np.float32), expected)
    count = f"{PROTOCOLS[what].count:,}"
    assert f"40 of the {count} samples of {PROTOCOLS[what].title}'s evaluation" in text
    assert f"run.py score {what} --pred {tmp_path / 'pred.json'}" in text and text.endswith("--count 40")
    assert ("TRUE one (--root true)" in text) == (root == "true")


@pytest.mark.parametrize("ending", ["json", "zip"])
@pytest.mark.parametrize("what", WHAT)
def test_exported_file_scores_as_test_said(what, ending, tmp_path):
    """`score` on the exported file and public labels of the same rows gives what scores.json of `test` says, to 1e-9."""
    columns = random_columns()
    predictions = read_predictions(write_predictions(tmp_path / "p.npz", what, columns))
    said = score(predictions, HAND, bootstrap=100).summary["official"]
    export(what, predictions.path, tmp_path / f"pred.{ending}")
    truth = write_truth(tmp_path / "truth", columns, what)
    official_score.score(what, tmp_path / f"pred.{ending}", truth, out=tmp_path / "out", count=40)
    values = json.loads((tmp_path / "out" / "scores.json").read_text())["scores"]
    assert list(said) == list(PROTOCOLS[what].names) == list(values)
    assert max(abs(said[name] - values[name]) for name in values) < 1e-9
    assert 0.3 < said["xyz_mean3d"] < 5  # cm


def test_zip_holds_the_json_and_is_the_same_twice(tmp_path):
    """The member of the zip is the json file to the byte, and a second zip equals the first."""
    file = write_predictions(tmp_path / "p.npz", "freihand", random_columns())
    for name in ("a.json", "a.zip", "b.zip"):
        export("freihand", file, tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.read("pred.json") == (tmp_path / "a.json").read_bytes()


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-100, max_value=100), min_size=1))
def test_numbers_survive_text(values):
    """Any float32 as short decimal: the same float32, the same double after json, and at most 14 characters."""
    wanted = np.array(values, np.float32)
    found = short_decimals(wanted)
    np.testing.assert_array_equal(found.astype(np.float32), wanted)
    np.testing.assert_array_equal(np.array(json.loads(orjson.dumps(found, option=orjson.OPT_SERIALIZE_NUMPY))), found)
    texts = orjson.dumps(found.tolist())[1:-1].split(b",")
    assert all(len(text) <= 14 for number, text in zip(found, texts) if abs(number) > 1e-3)  # not -0.0010000000474974513


def test_without_a_wrist_aligned_numbers_remain(tmp_path):
    """No predicted wrist: scores.json has the aligned values, as with any wrist; export asks for one or takes the true one."""
    columns = random_columns()
    with_root = score(read_predictions(write_predictions(tmp_path / "a.npz", "ho3d_v3", columns)), HAND, bootstrap=100)
    del columns["pred_root"]
    file = write_predictions(tmp_path / "p.npz", "ho3d_v3", columns)
    official = score(read_predictions(file), HAND, bootstrap=100).summary["official"]
    assert set(official) == {"xyz_procrustes_al_mean3d", "xyz_procrustes_al_auc3d", "xyz_scale_trans_al_mean3d",
                             "xyz_scale_trans_al_auc3d", "mesh_al_mean3d", "mesh_al_auc3d", "f_al_score_5", "f_al_score_15"}
    assert max(abs(official[name] - with_root.summary["official"][name]) for name in official) < 1e-4  # float32 about 0.6 m
    with pytest.raises(InputError, match=r"column pred_root\), found none; place the hands in the camera first \(run.py ref"):
        export("ho3d_v3", file, tmp_path / "pred.zip")
    assert "usual on HO3D" in export("ho3d_v3", file, tmp_path / "pred.zip", root="true")


@pytest.mark.parametrize(("what", "out"), [("freihand", "a.json"), ("dex_ycb", "a.txt")])
def test_stand_ins_are_counted(what, out, tmp_path):
    """Wrists that stand on nothing are told beside the exported file; none of them, or a refined file: no word."""
    text = {}
    for number, more in enumerate(({"placed_by": {ROOT_BY[0]: 16, ROOT_BY[1]: 24}}, {"placed_by": {ROOT_BY[1]: 40}},
                                   {"placed_by": {ROOT_BY[0]: 16}, "refine": {}})):
        file = write_predictions(tmp_path / f"{number}.npz", what, random_columns(), **more)
        text[number] = export(what, file, tmp_path / out)
    assert "the wrist is the predicted one (16 of 40 are stand-ins)" in text[0]
    assert "stand-in" not in text[1] + text[2]


def test_rows_without_labels_are_not_scored(tmp_path):
    """Official values over the labelled rows equal those of a file of these rows alone; a file without labels has none."""
    columns = random_columns()
    alone = {key: value[5:] for key, value in columns.items()}
    expected = score(read_predictions(write_predictions(tmp_path / "a.npz", "freihand", alone)), HAND, bootstrap=100)
    columns["true_verts"][:5] = columns["true_joints"][:5] = np.nan
    found = score(read_predictions(write_predictions(tmp_path / "b.npz", "freihand", columns)), HAND, bootstrap=100)
    assert found.summary["official"] == pytest.approx(expected.summary["official"], abs=1e-12)


def test_dexycb_text_scores_as_test_said(tmp_path):
    """DexYCB's text with 4 decimals scores within 1e-4 mm of scores.json (half a unit of its last place in each coordinate)."""
    columns = random_columns(lefts=True)
    file = write_predictions(tmp_path / "p.npz", "dex_ycb", columns)
    said = score(read_predictions(file), HAND, bootstrap=100).summary["official"]
    text = export("dex_ycb", file, tmp_path / "out.txt")
    assert "40 images of DexYCB s0/test" in text and "score dex_ycb" in text and text.endswith("--split s0/test")
    true = 1e3 * columns["true_joints"].astype(float)
    true[columns["mirrored"], :, 0] *= -1
    for key, found in text_scores(tmp_path / "out.txt", columns["official_index"], true).items():
        assert abs(found.mean - said[key]["mean_mm"]) < 1e-4 and abs(found.auc - said[key]["auc"]) < 1e-4


def test_export_takes_no_more_memory_for_more_samples(tmp_path):
    """Peak of what is allocated while exporting 4000 samples against 500: within a tenth, and far below one list of them."""
    peaks = {}
    for rows in (500, 4000):
        rng = np.random.default_rng(0)
        columns = {"pred_verts": rng.normal(0, 0.1, (rows, 778, 3)).astype(np.float32), "pred_root": np.full((rows, 3), 0.5),
                   "pred_joints": rng.normal(0, 0.1, (rows, 21, 3)).astype(np.float32), "mirrored": np.zeros(rows, bool),
                   "official_index": rng.permutation(rows), "subject": np.zeros(rows, int), "index": np.arange(rows)}
        file = write_predictions(tmp_path / f"{rows}.npz", "ho3d_v2", columns)
        del columns
        tracemalloc.start()
        export("ho3d_v2", file, tmp_path / f"{rows}.json")
        peaks[rows] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (tmp_path / f"{rows}.json").stat().st_size > 20_000 * rows
    assert peaks[4000] < 1.1 * peaks[500] and peaks[4000] < 12 * CHUNK * 778 * 3 * 8


def _without(key: str, columns: dict) -> None:
    del columns[key]


def _set(key: str, rows: object, value: object, columns: dict) -> None:
    columns[key][rows] = value


FAULTS = {
    "no wrist in a row": (lambda c: _set("pred_root", 7, np.nan, c), "s/007 has no predicted wrist position"),
    "not finite": (lambda c: _set("pred_verts", (9, 3), np.nan, c), "the prediction of s/009 is not finite"),
    "training split": (lambda c: _without("official_index", c), r"\(FreiHAND evaluation\) have no place in an official list"),
    "negative": (lambda c: _set("official_index", 4, -1, c), "s/004 has no place in the official list"),
    "missing": (lambda c: _set("official_index", slice(None), 2 * np.arange(40), c),
                r"official sample 1 is missing \(the next one there is 2\); predict the whole evaluation split"),
    "first missing": (lambda c: _set("official_index", slice(None), 5 + np.arange(40), c), "official sample 0 is missing"),
    "repeated": (lambda c: _set("official_index", c["official_index"] == 5, 4, c), "official sample 4 occurs twice"),
    "keypoints only": (lambda c: [c.pop("pred_verts"), c.pop("pred_joints"), c.update(pred_joints_uv=np.zeros((40, 21, 2)))],
                       "holds joints in the picture alone, but FreiHAND asks for joints and vertices in 3D"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_exported_is_refused_in_one_line(fault, tmp_path):
    """Each fault of a predictions file: its reason in one line, and nothing written."""
    change, reason = FAULTS[fault]
    columns = random_columns()
    change(columns)
    file = write_predictions(tmp_path / "p.npz", "freihand", columns)
    with pytest.raises(InputError, match=reason) as error:
        export("freihand", file, tmp_path / "out" / "pred.zip")
    assert "\n" not in str(error.value) and str(file) in str(error.value)
    assert not list((tmp_path / "out").glob("*"))


def test_files_and_names_that_are_not_meant_are_refused(tmp_path, monkeypatch):
    """Another dataset's predictions, other files, other topology, names of --out and --root: the reason, and nothing written."""
    columns = random_columns(8)
    files = {name: write_predictions(tmp_path / f"{name}.npz", name, columns) for name in ("freihand", "ho3d_v2", "dex_ycb")}
    old = write_predictions(tmp_path / "old.npz", None, columns)
    (tmp_path / "pred.json").write_text("[[],[]]")
    np.savez(tmp_path / "foreign.npz", a=np.zeros(3))
    cut = tmp_path / "cut.npz"
    cut.write_bytes(files["freihand"].read_bytes()[:-200])
    out = tmp_path / "out" / "pred.zip"
    for what, file, out_name, root, reason in (
        ("freihand", files["dex_ycb"], out, "pred", "expected predictions of FreiHAND's evaluation, found those of DexYCB"),
        ("freihand", old, out, "pred", "found those of DexYCB; export them as dex_ycb"),
        ("ho3d_v3", files["ho3d_v2"], out, "pred", "expected predictions of HO3D v3's evaluation, found those of HO3D v2"),
        ("dex_ycb", files["freihand"], out.with_suffix(".txt"), "pred", "expected predictions of DexYCB's evaluation"),
        ("freihand", tmp_path / "none.npz", out, "pred", "expected a file, found nothing"),
        ("freihand", tmp_path / "pred.json", out, "pred", r"expected a predictions file \(.npz\), found another kind"),
        ("freihand", tmp_path / "foreign.npz", out, "pred", "not a predictions file"),
        ("freihand", cut, out, "pred", "cut short or damaged"),
        ("rhd", files["freihand"], out, "pred", "export: expected one of freihand, ho3d_v2, ho3d_v3, dex_ycb, found rhd"),
        ("freihand", files["freihand"], out, "gt", "--root: expected pred or true, found gt"),
        ("dex_ycb", files["dex_ycb"], out.with_suffix(".txt"), "true", "--root true: DexYCB's absolute numbers"),
        ("freihand", files["freihand"], out.with_suffix(".txt"), "pred", "expected a name that ends in .json or .zip"),
        ("dex_ycb", files["dex_ycb"], out, "pred", "expected a name that ends in .txt"),
    ):
        with pytest.raises(InputError, match=reason):
            export(what, file, out_name, root=root)
    monkeypatch.setitem(PROTOCOLS, "freihand", PROTOCOLS["freihand"]._replace(count=7))
    with pytest.raises(InputError, match="expected at most the 7 samples of FreiHAND's evaluation list, found 8"):
        export("freihand", files["freihand"], out)
    with pytest.raises(InputError, match="this is a folder; name a new file"):
        (tmp_path / "folder.zip").mkdir()
        export("freihand", files["freihand"], tmp_path / "folder.zip")
    assert not list((tmp_path / "out").glob("*"))


def test_another_topology_is_no_predictions_file(tmp_path):
    """A file with 500 vertices per hand is refused when it is opened, by the column's shape."""
    file = write_predictions(tmp_path / "p.npz", "freihand", random_columns(8))
    with np.load(file) as content:
        arrays = {key: content[key] for key in content.files}
    np.savez(file, **{**arrays, "pred_verts": arrays["pred_verts"][:, :500]})
    with pytest.raises(InputError, match=r"column pred_verts: expected float32 \(8, 778, 3\), found float32 \(8, 500, 3\)"):
        export("freihand", file, tmp_path / "pred.json")


def test_chunks_bring_what_was_asked(tmp_path):
    """official_chunks: part, truth and root as asked; without a root the wrist is at the origin, a missing label stays NaN."""
    columns = random_columns()
    columns["true_joints"][columns["official_index"] == 0] = np.nan
    predictions = read_predictions(write_predictions(tmp_path / "p.npz", "ho3d_v2", columns))
    assert [set(chunk) for chunk in official_chunks(predictions, "ho3d_v2", parts=("verts",))] == [{"pred_verts"}]
    (chunk,) = official_chunks(predictions, "ho3d_v2", root=None, with_truth=True)
    np.testing.assert_array_equal(chunk["pred_xyz"][:, 0], 0)
    assert np.isnan(chunk["true_xyz"][0]).all() and np.isfinite(chunk["true_verts"]).all()
    expected = official_points(columns, "ho3d_v2", "true", None)
    np.testing.assert_array_equal(np.float32(chunk["true_xyz"]), np.float32(expected[0]))
    np.testing.assert_array_equal(np.float32(chunk["true_verts"]), np.float32(expected[1]))
