"""train.keep_best: best.pt holds the weights at the lowest validation, also when the run is cut and goes on."""

import pytest
import torch

from src import engine
from tests.toy_method import ToySource, curves, method, run
from utils.errors import InputError

OPTIONS = {"steps": 20, "validate_every": 4, "keep_best": "joints", "lr": 1e-2, "log_every": 1}


def scores(monkeypatch, values):
    """Validations that say these numbers, one after the other."""
    said = iter(values)
    monkeypatch.setattr(engine, "validate", lambda *args, **options: {"joints": next(said)})


def load(path):
    return torch.load(path, weights_only=True)


def test_lowest_is_kept(tmp_path, monkeypatch):
    """Of five validations the lowest's step is in best.pt, with its weights; NaN and a tie replace nothing."""
    scores(monkeypatch, [3.0, 1.0, float("nan"), 1.0, 2.0])
    run(tmp_path, method(), ToySource(), val=ToySource(8, seed=1), keep_every=8, **OPTIONS)
    best = load(tmp_path / "best.pt")
    assert best["step"] == 8 and best["best"] == 1.0 and load(tmp_path / "last.pt")["best"] == 1.0
    for name, value in load(tmp_path / "step_0000008.pt")["model"].items():
        assert torch.equal(best["model"][name], value)


@pytest.mark.parametrize("term_at", [7, 9, 24])
def test_same_best_after_a_cut(tmp_path, term_at):
    """Asked to stop in a step (7), in a validation (9) or in the last one (24), then started again: the same best.pt."""
    for folder, cut in (("whole", -1), ("cut", term_at)):
        run(tmp_path / folder, method(term_at=cut), ToySource(), val=ToySource(8, seed=1), save_every=3, **OPTIONS)
    assert load(tmp_path / "cut/last.pt")["validated"] < load(tmp_path / "cut/last.pt")["step"]
    run(tmp_path / "cut", method(), ToySource(), val=ToySource(8, seed=1), save_every=3, **OPTIONS)
    whole, cut = (load(tmp_path / folder / "best.pt") for folder in ("whole", "cut"))
    assert whole["step"] == cut["step"] and whole["best"] == cut["best"]
    assert whole["best"] == pytest.approx(min(curves(tmp_path / "whole", "val/joints").values()))
    assert all(torch.equal(whole["model"][name], value) for name, value in cut["model"].items())


def test_refused(tmp_path):
    """No validation split, and a number that the validation does not give: one line each."""
    with pytest.raises(InputError, match=r"train\.keep_best=joints: nothing is validated; set train\.val_split"):
        run(tmp_path / "a", method(), ToySource(), **OPTIONS)
    with pytest.raises(InputError, match=r"train\.keep_best=joint: the validation gives no such number; it gives .*joints"):
        run(tmp_path / "b", method(), ToySource(), val=ToySource(8), **{**OPTIONS, "keep_best": "joint"})


def test_changing_it_is_no_other_run(tmp_path):
    """A run goes on under another keep_best, which reaches no weight."""
    run(tmp_path, method(term_at=6), ToySource(), val=ToySource(8), **{**OPTIONS, "keep_best": None})
    assert not (tmp_path / "best.pt").exists()
    assert run(tmp_path, method(), ToySource(), val=ToySource(8), **OPTIONS).steps == 20
    assert (tmp_path / "best.pt").exists()
