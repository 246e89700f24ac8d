"""run.py as its users call it, on a small synthetic tree: the whole job end to end, exact resume through SIGKILL, wrong input."""
import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parent.parent
TINY = {
    "hand": "template/free_hand_right.npz", "threads": 1,
    "synth": {"name": "dexycb", "people": 10, "sequences": 2, "frames": 2, "cameras": 2, "width": 160, "height": 120,
              "left": 0.5, "no_hand": 0.0, "leaving": 0.0, "depth": False, "workers": 1, "idle": [0, 1]},
    "dataset": {"name": "dex_ycb", "setup": "s1", "hands": "mirror_left", "width": 160, "height": 120, "in_image": False,
                "workers": 1, "stored": {"factor": 2.0, "pixels": 64}},
    "crop": {"pixels": 32, "factor": 1.3},
    "augment": {"rotate": 30, "brightness": 32},
    "method": {"name": "idhand", "backbone": "resnet18", "width": 0.125, "feature": "pooled", "hidden": [16],
               "camera_cue": "zoom"},
    "train": {"steps": 12, "batch": 8, "lr": 1e-3, "save_every": 1, "save_seconds": 0, "schedule": "cosine", "ema": 0.9},
    "test": {"workers": 0, "bootstrap": 100, "pictures": 3},
}
LOSS = {"verts": 1, "normal": 0.1, "edge": 1, "pose": 1}


def run(*words: object, code: int = 0, **options: object) -> subprocess.CompletedProcess:
    """run.py with these words; fails with its output where the exit code is another."""
    done = subprocess.run([sys.executable, "run.py", *map(str, words)], cwd=ROOT, text=True, capture_output=True, **options)
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr[-3000:]}"
    return done


def write_options(folder: Path, name: str, **changes: dict) -> Path:
    """An option file of the tiny experiment with some sections changed."""
    tree = copy.deepcopy(TINY) | {"name": name, "out": str(folder / "out")}
    tree["synth"]["out"] = tree["dataset"]["root"] = str(folder / "dex_ycb")
    tree["dataset"]["prepared"] = str(folder / "prepared")
    for key, value in changes.items():
        tree[key] = {**tree.get(key, {}), **value}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a written and prepared synthetic tree."""
    folder = tmp_path_factory.mktemp("tiny")
    path = write_options(folder, "tree")
    run("synth", path)
    said = run("prepare", path).stdout
    assert "80 of 80 frames kept" in said
    return folder


def test_whole_job(tiny: Path):
    """baseline, conf, calibrate, given, test three ways, report: every file is written and the numbers hang together."""
    base = write_options(tiny, "baseline", loss={**LOSS, "shape": 1})
    run("train", base)
    conf = write_options(tiny, "conf", loss={"conf": 1}, method={"conf_branch": 1, "train_only_conf": True},
                         train={"steps": 2, "init": str(tiny / "out/baseline/last.pt"), "init_missing": ["conf_branch."]})
    run("train", conf)
    given = write_options(tiny, "given", loss=LOSS, method={"shape": "given"},
                          train={"steps": 2, "init": str(tiny / "out/baseline/last.pt"), "init_unused": ["shape_head."]})
    run("train", given)
    run("test", conf, "dataset.sequences=even", "test.tag=calibration", "test.report=false")
    predictions = tiny / "out/conf/calibration/predictions.npz"
    run("calibrate", conf, f"calibrate.predictions={predictions}", "calibrate.n=2", "calibrate.draws=3",
        "calibrate.write_draws=true")
    run("test", base, "dataset.sequences=odd")
    run("test", given, "dataset.sequences=odd")
    identities = tiny / "out/conf/identities"
    run("test", given, "dataset.sequences=odd", "test.tag=calibrated", f"test.identity={identities}/draws")
    out = tiny / "out"
    report = write_options(tiny, "report", dataset={"sequences": "odd"}, report={
        "runs": {"baseline": [f"{out}/baseline/test/scores.json"], "given": [f"{out}/given/test/scores.json"],
                 "calibrated": [f"{out}/given/calibrated/*/scores.json"]},
        "reference": "baseline", "full_gain": "given", "curve": f"{identities}/curve.json", "pictures": 3, "bootstrap": 100})
    said = run("report", report).stdout
    summary = json.loads((out / "report/summary.json").read_text())
    assert summary["given"]["shape_error"] == 0 < summary["calibrated"]["shape_error"]
    assert summary["calibrated"]["files_averaged"] == 3 and summary["baseline"]["frames"] == summary["given"]["frames"]
    expected = summary["given"]["mpvpe_mm"] - summary["baseline"]["mpvpe_mm"]
    assert summary["differences"]["given"]["mean"] == pytest.approx(expected) and "given - baseline" in said
    page = (out / "report/report.html").read_text()
    assert page.count("data:image/jpeg;base64") >= 9 and "http-equiv" not in page
    again = run("train", base)
    assert "12 of 12 steps" in again.stdout
    run("test", given, "dataset.sequences=even", f"test.identity={identities}", code=2)  # frames that calibrated are refused


def test_resume_is_exact(tiny: Path):
    """A training killed with SIGKILL at three places and started again ends with an undisturbed one's weights, bit for bit."""
    whole = write_options(tiny, "whole", loss={**LOSS, "shape": 1})
    killed = write_options(tiny, "killed", loss={**LOSS, "shape": 1})
    run("train", whole)
    last, kills = tiny / "out/killed/last.pt", 0
    for after in (2, 5, 9):
        process = subprocess.Popen([sys.executable, "run.py", "train", str(killed)], cwd=ROOT, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        while process.poll() is None and not (last.is_file() and torch.load(last, weights_only=True)["step"] >= after):
            time.sleep(0.002)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    run("train", killed)
    assert kills >= 1
    states = [torch.load(tiny / f"out/{name}/last.pt", weights_only=True) for name in ("whole", "killed")]
    for part in ("model", "ema"):
        assert states[0][part].keys() == states[1][part].keys()
        assert all(torch.equal(value, states[1][part][key]) for key, value in states[0][part].items())


def test_two_processes_match_one(tiny: Path, one_launcher):
    """torchrun with two processes gives the losses of one process with the same total batch (float32, no batch-norm update)."""
    pytest.importorskip("torch.distributed")
    logs = {}
    for name, launch in (("one", [sys.executable]), ("two", [sys.executable, "-m", "torch.distributed.run", "--standalone",
                                                              "--nproc-per-node", "2"])):
        options = write_options(tiny, name, loss={**LOSS, "shape": 1}, train={"steps": 1, "ema": 0.0, "log_every": 1})
        done = subprocess.run([*launch, "run.py", "train", str(options)], cwd=ROOT, text=True, capture_output=True,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr[-3000:]
        logs[name] = _scalars(tiny / "out" / name / "board")
    assert logs["one"].keys() == logs["two"].keys()
    for key in ("train_verts", "train_pose", "train_shape"):
        assert logs["two"][key][0] == pytest.approx(logs["one"][key][0], rel=1e-5), key


def test_export_metro(tiny: Path, tmp_path: Path):
    """`export metro_tsv` with an override after --out: rows of all three splits, which hold the tree's right hands once each."""
    options = write_options(tiny, "export")
    said = run("export", "metro_tsv", options, "--out", tmp_path / "tsv", "dataset.hands=right").stdout
    assert [line.split(":")[0] for line in said.splitlines()] == ["train", "val", "test"]
    keys = [line.split("\t")[0] for split in ("train", "val", "test")
            for line in (tmp_path / "tsv" / f"{split}.label.tsv").read_text().splitlines()]
    rights = [path.parent for path in (tiny / "dex_ycb").glob("*/*/meta.yml") if "- right" in path.read_text()]
    assert len(set(keys)) == len(keys) == sum(len(list(folder.glob("*/color_*.jpg"))) for folder in rights) > 0
    assert "dataset.hands" in run("export", "metro_tsv", options, "--out", tmp_path / "both", code=2).stderr
    (tmp_path / "tsv/notes.txt").write_text("not yours")
    assert "notes.txt" in run("export", "metro_tsv", options, "--out", tmp_path / "tsv", "dataset.hands=right", code=2).stderr


def _scalars(folder: Path) -> dict[str, list[float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_help_is_quick():
    """--help answers without importing torch."""
    code = ("import sys, run\ntry: run.main(['--help'])\nexcept SystemExit: pass\n"
            "assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


WRONG = {
    "unknown command": (["trian", "options/quickstart.yaml"], "invalid choice: 'trian'"),
    "no option file": (["train", "options/quikstart.yaml"], "did you mean options/quickstart.yaml?"),
    "no file where one is needed": (["train"], "option_file"),
    "overrides where a file is needed": (["train", "train.lr=1"], "expected an option file before train.lr=1"),
    "unknown option without a file": (["calibrate", "measurd=1"], "did you mean calibrate.measured?"),
    "export without a dataset": (["export", "metro_tsv", "options/quickstart_synth.yaml", "--out", "out/none"], "`dataset:`"),
    "export what": (["export", "metro", "options/quickstart.yaml", "--out", "out/none"], "'metro'"),
    "export with more words": (["export", "freihand", "x.npz", "seed=1", "--out", "x.json"], "alone, found seed=1"),
    "score of a split": (["score", "freihand", "--pred", "x.json", "--truth", "y", "--split", "s0/val"], "is for dex_ycb"),
    "unknown option": (["train", "options/quickstart.yaml", "train.lrr=1"], "did you mean train.lr?"),
    "wrong value": (["train", "options/quickstart.yaml", "train.batch=many"], "train.batch"),
    "no synth section": (["synth", "options/quickstart.yaml"], "needs a `synth:` section"),
    "MANO absent": (["train", "options/dex_ycb_baseline.yaml"], "template/MANO_RIGHT.pkl"),
    "hand that is another file": (["train", "options/quickstart.yaml", "hand=README.md"], "README.md"),
    "dataset not prepared": (["train", "options/quickstart_start.yaml", "dataset.prepared=nowhere"], "nowhere"),
    "dataset absent": (["prepare", "options/quickstart.yaml", "dataset.root=nowhere", "dataset.prepared=out/none"], "nowhere"),
    "no checkpoint": (["test", "options/quickstart_baseline.yaml", "name=nothing_here"], "last.pt"),
    "no predictions to calibrate": (["calibrate", "options/quickstart_baseline.yaml"], "calibrate.predictions"),
    "demo without input": (["demo", "options/quickstart_baseline.yaml", "name=nothing_here"], "last.pt"),
    "report without runs": (["report", "options/quickstart_baseline.yaml"], "report.runs"),
    "negative seed": (["train", "options/quickstart.yaml", "seed=-1"], "seed"),
    "hand of the other side": (["train", "options/quickstart_start.yaml", "hand=template/free_hand_left.npz"], "left hand"),
    "output below a file": (["convert", "mano", "template/free_hand_right.npz", "--out", "README.md/x.npz"], "README.md"),
    "output is a folder": (["convert", "mano", "template/free_hand_right.npz", "--out", "tests"], "tests"),
    "convert what": (["convert", "idhand", "x.pt", "--out", "y.pt"], "idhand"),
    "convert nothing": (["convert", "idhand_baseline", "x.pt", "--out", "y.pt"], "x.pt"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line(case: str):
    """Exit code 2 and one line on stderr that names the thing; no traceback."""
    words, expected = WRONG[case]
    done = run(*words, code=2)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and expected in lines[0], done.stderr


def test_checkpoint_of_another_kind(tiny: Path, tmp_path: Path):
    """A truncated checkpoint and one of another arm: one line each, naming the file."""
    options = write_options(tiny, "one_step", loss={**LOSS, "shape": 1}, train={"steps": 1})
    run("train", options)
    checkpoint = tiny / "out/one_step/last.pt"
    cut = tmp_path / "cut.pt"
    cut.write_bytes(checkpoint.read_bytes()[:5000])
    assert str(cut) in run("test", options, f"test.checkpoint={cut}", code=2).stderr
    other = run("test", options, f"test.checkpoint={checkpoint}", "method.shape=given", code=2).stderr
    assert "method.shape = 'predicted' there" in other and other.count("\n") == 1
    turned = run("test", options, f"test.checkpoint={checkpoint}", "method.pose_update=multiply", code=2).stderr
    assert "method.pose_update" in turned and turned.count("\n") == 1  # fits, but was trained otherwise
    changed = run("train", options, "train.lr=0.5", code=2).stderr
    assert "train.lr" in changed


def test_prepare_touches_only_its_own(tiny: Path, tmp_path: Path):
    """prepare into the dataset, or into a folder of other files, is refused in a line, and nothing there is deleted."""
    options = write_options(tiny, "elsewhere")
    assert "dataset.prepared" in run("prepare", options, f"dataset.prepared={tiny / 'dex_ycb'}", code=2).stderr
    other = tmp_path / "mine"
    other.mkdir()
    (other / "half.part").write_text("not yours")
    (other / "notes.txt").write_text("not yours")
    assert "notes.txt" in run("prepare", options, f"dataset.prepared={other}", code=2).stderr
    assert (other / "half.part").is_file()


def test_truncated_crops_are_one_line(tiny: Path, tmp_path: Path):
    """crops.lmdb cut short: a line that names it, where a mapped read past its end would kill the process."""
    shutil.copytree(tiny / "prepared", tmp_path / "cut")
    crops = tmp_path / "cut/crops.lmdb"
    os.truncate(crops, crops.stat().st_size // 2)
    options = write_options(tiny, "cut", loss={**LOSS, "shape": 1})
    said = run("train", options, f"dataset.prepared={tmp_path / 'cut'}", code=2).stderr
    assert "crops.lmdb" in said and "truncated" in said


def test_another_crop_is_refused(tiny: Path):
    """A network is not shown other crops than it was trained on."""
    options = write_options(tiny, "crop", loss={**LOSS, "shape": 1}, train={"steps": 1})
    run("train", options)
    assert "crop.factor" in run("test", options, "crop.factor=1.1", code=2).stderr


def test_a_python_without_the_packages_is_told_the_way():
    """run.py by an interpreter that lacks every package: one line with the remedy, exit code 2, no traceback."""
    found = subprocess.run([sys.executable, "-S", "-E", "run.py", "train", "options/quickstart.yaml"], capture_output=True,
                           text=True, cwd=ROOT, check=False)
    assert found.returncode == 2 and found.stderr.count("\n") == 1 and "./scripts/setup.sh" in found.stderr
