"""Checkpoints: what fits is loaded to the bit, what does not is refused with the file, the reason and the remedy."""
import pickle

import pytest
import torch
from torch import nn

from src.checkpoint import VERSION, deciding, holds_run, load, load_weights, options_hash, require_same_method, save, save_weights
from utils.errors import InputError

HAND = {"name": "free hand", "sha256": "a" * 64}


def model(width=4, extra=False):
    parts = {"trunk": nn.Linear(3, width), "head": nn.BatchNorm1d(width)}
    return nn.ModuleDict(parts | ({"branch": nn.Linear(2, 2)} if extra else {}))


@pytest.fixture
def written(tmp_path):
    """A checkpoint of a model, and the model."""
    one = model()
    save(tmp_path / "a.pt", method_name="idhand", hand_info=HAND, model=one.state_dict(), step=7, ema=None)
    return tmp_path / "a.pt", one


def test_round_trip(written):
    """Weights and buffers come back to the bit, the rest beside them."""
    path, one = written
    two = model()
    rest = load_weights(two, path, method_name="idhand", hand_info=HAND)
    assert rest["step"] == 7 and "model" not in rest
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name])


def test_average_is_preferred(tmp_path):
    """A run's running average is what later stages use, unless they say otherwise."""
    one, average, two = model(), model(), model()
    save(tmp_path / "a.pt", method_name="m", hand_info=None, model=one.state_dict(), ema=dict(average.state_dict()))
    load_weights(two, tmp_path / "a.pt", method_name="m", hand_info=HAND)
    assert torch.equal(two["trunk"].weight, average["trunk"].weight)
    load_weights(two, tmp_path / "a.pt", method_name="m", hand_info=HAND, averaged=False)
    assert torch.equal(two["trunk"].weight, one["trunk"].weight)


def test_converted_weights_know_no_hand(tmp_path):
    """save_weights writes no hand, which fits every hand model; notes are kept."""
    save_weights(tmp_path / "a.pt", "idhand", model().state_dict(), options={"name": "idhand"})
    assert load_weights(model(), tmp_path / "a.pt", method_name="idhand", hand_info=HAND)["options"] == {"name": "idhand"}


def test_absent(tmp_path):
    """A checkpoint that is not there, or is a folder."""
    with pytest.raises(InputError, match=r"nowhere.pt: expected a file, found nothing; train first"):
        load(tmp_path / "nowhere.pt")
    with pytest.raises(InputError, match="found a folder"):
        load(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated(written, share):
    """A file cut off anywhere is one line, not a traceback."""
    path, _ = written
    data = path.read_bytes()
    path.write_bytes(data[:int(share * len(data))])
    with pytest.raises(InputError, match=r"a.pt: expected a checkpoint of this project, found one that is truncated"):
        load(path)


def test_damaged(written):
    """One flipped bit among the weights is found by its checksum (torch's own loader takes it)."""
    path, one = written
    data = bytearray(path.read_bytes())
    data[data.index(one["trunk"].weight.detach().numpy().tobytes()) + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="bad checksum"):
        load(path)


class Hostile:
    def __reduce__(self):
        return print, ("this must never run",)


@pytest.mark.parametrize("content", [b"hello", pickle.dumps({"a": 1}), pickle.dumps(Hostile())])
def test_something_else(tmp_path, content, capsys):
    """Text and pickles, one that tries to run code among them, are refused unread."""
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match="a.pt: expected a checkpoint of this project"):
        load(path)
    assert "never" not in capsys.readouterr().out


@pytest.mark.parametrize("content, found", [([1, 2], "a list"), ({"model_state_dict": {}}, "keys .'model_state_dict'"),
                                            (torch.zeros(3), "a Tensor")])
def test_torch_file_of_others(tmp_path, content, found):
    """A torch file of another program is told from ours by its keys, and convert is named."""
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(InputError, match=f"found a torch file with {found}.*run.py convert"):
        load(tmp_path / "a.pt")


def test_other_version(tmp_path):
    """A checkpoint of a later format is refused with both numbers."""
    path = tmp_path / "a.pt"
    save(path, method_name="m", hand_info=None, model={})
    torch.save({**load(path), "version": VERSION + 1}, path)
    with pytest.raises(InputError, match=f"expected checkpoint version {VERSION}, found {VERSION + 1}"):
        load(path)


def test_other_method_and_other_hand(written):
    """A checkpoint of another method or hand model is refused with both names."""
    path, _ = written
    with pytest.raises(InputError, match="expected a checkpoint of method sar, found one of idhand"):
        load_weights(model(), path, method_name="sar", hand_info=HAND)
    with pytest.raises(InputError, match=r"trained with hand model free hand \(a{12}\), found MANO \(b{12}\)"):
        load_weights(model(), path, method_name="idhand", hand_info={"name": "MANO", "sha256": "b" * 64})


def test_weights_that_do_not_fit(tmp_path, written):
    """Missing, additional and misshapen weights are counted and named, and nothing is loaded."""
    path, _ = written
    other = model(width=5, extra=True)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_weights(other, path, method_name="idhand", hand_info=HAND)
    message = str(caught.value)
    assert "2 weights missing (branch.weight, branch.bias)" in message
    assert "weights of another size (trunk.weight (4, 3) instead of (5, 3)" in message
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    save_weights(tmp_path / "b.pt", "idhand", model(extra=True).state_dict())
    with pytest.raises(InputError, match=r"2 weights the method has not \(branch.weight, branch.bias\)"):
        load_weights(model(), tmp_path / "b.pt", method_name="idhand", hand_info=HAND)


def test_other_options_are_told_before_the_weights(tmp_path):
    """Options that differ come before the sizes that follow from them; train.init's prefixes are for train.init alone."""
    narrow, path = {"width": 4}, tmp_path / "a.pt"
    save_weights(path, "m", model().state_dict(), method_options=narrow)
    told = {"method_name": "m", "hand_info": HAND}
    with pytest.raises(InputError, match=r"a\.pt: trained with other options .*\(method\.width = 4 there and 5 now\)"):
        load_weights(model(width=5), path, **told, method_options={"width": 5})
    load_weights(model(), path, **told, method_options={"width": 5}, training_only=frozenset({"width"}))
    with pytest.raises(InputError, match="does not fit the method: .*; use the method options it was trained with$"):
        load_weights(model(width=5), path, **told, method_options=narrow)
    with pytest.raises(InputError, match=r"trained with, or allow name prefixes by train\.init_missing and train\.init_unused$"):
        load_weights(model(width=5), path, **told)


def test_one_weight_is_not_weights(tmp_path):
    """The count agrees with its noun."""
    state = model().state_dict()
    del state["trunk.bias"]
    save_weights(tmp_path / "a.pt", "m", state)
    with pytest.raises(InputError, match=r"does not fit the method: 1 weight missing \(trunk\.bias\); use"):
        load_weights(model(), tmp_path / "a.pt", method_name="m", hand_info=HAND)


@pytest.mark.parametrize("rest, held", [({"optimizer": {}, "step": 0}, True), ({}, False), ({"converted_from": "x"}, False)])
def test_what_holds_a_run(tmp_path, rest, held):
    """A checkpoint with an optimiser is a run; weights alone, other files, folders and nothing are none."""
    save(tmp_path / "a.pt", method_name="m", hand_info=None, model=model().state_dict(), **rest)
    (tmp_path / "text.pt").write_text("optimizer")
    torch.save({"optimizer": {}}, tmp_path / "theirs.pt")
    assert holds_run(tmp_path / "a.pt") is held
    assert not any(holds_run(tmp_path / name) for name in ("text.pt", "theirs.pt", "none.pt", "."))


def test_allowed_prefixes(tmp_path, written):
    """A new branch may be missing and an old one unused where prefixes allow it; a prefix that fits nothing is refused."""
    path, one = written
    other = model(extra=True)
    load_weights(other, path, method_name="idhand", hand_info=HAND, allow_missing=["branch."])
    assert torch.equal(other["trunk"].weight, one["trunk"].weight)
    save_weights(tmp_path / "b.pt", "idhand", other.state_dict())
    load_weights(model(), tmp_path / "b.pt", method_name="idhand", hand_info=HAND, allow_unused=["branch"])
    with pytest.raises(InputError, match="init_missing: no weight begins with 'brunch'; they begin with branch, head, trunk"):
        load_weights(other, path, method_name="idhand", hand_info=HAND, allow_missing=["brunch"])
    with pytest.raises(InputError, match="init_unused: no weight begins with 'branch'; they begin with head, trunk"):
        load_weights(model(), path, method_name="idhand", hand_info=HAND, allow_unused=["branch"])
    with pytest.raises(InputError, match="2 weights missing"):  # left out, so it must be allowed to be missing
        load_weights(model(), path, method_name="idhand", hand_info=HAND, allow_unused=["trunk"])


def test_failed_save_keeps_the_old_file(written, monkeypatch):
    """Where writing fails the old checkpoint stays, and no part of the new one."""
    path, one = written
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("utils.files.os.fsync", full)
    with pytest.raises(InputError, match=r"could not be written \(No space left on device\)"):
        save(path, method_name="m", hand_info=None, model={})
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["a.pt"]


def test_options_that_decide():
    """Paths, tests and how often one saves are free; rates, seeds and empty sections are not."""
    text = "name: {name}\nseed: {seed}\nloss: {{}}\ntest: {{batch: {n}}}\ntrain: {{lr: 0.1, workers: {n}, val_split: null}}\n"
    one = text.format(name="a", seed=0, n=1)
    assert deciding(one) == {"seed": 0, "loss": {}, "train.lr": 0.1}
    assert options_hash(one) == options_hash(text.format(name="b", seed=0, n=2))
    assert options_hash(one) != options_hash(text.format(name="a", seed=1, n=1))


def test_other_options_of_the_method():
    """Weights that fit, but were trained with other options, are refused; what only training reads may differ."""
    trained = {"options": "method: {name: idhand, pose_update: add, dropout: 0.1}"}
    free = frozenset({"dropout"})
    require_same_method(trained, "a.pt", {"pose_update": "add", "dropout": 0.0, "newer": 1}, free)
    require_same_method({"options": {"name": "idhand"}}, "a.pt", {"pose_update": "multiply"}, free)
    for found in (trained, {"method_options": {"pose_update": "add"}}):
        with pytest.raises(InputError, match=r"a.pt: .*method.pose_update = 'add' there and 'multiply' now"):
            require_same_method(found, "a.pt", {"pose_update": "multiply"}, free)
