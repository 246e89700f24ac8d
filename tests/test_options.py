"""Option loader: inheritance, overrides, YAML's traps, and the one line that says what is wrong."""
import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from options.arguments import arguments
from options.load import OptionDumper, OptionLoader, dump, load, read_tree
from utils.errors import InputError

QUICK = settings(max_examples=150, deadline=None)
TRAPS = ["1e-3", "off", "no", "null", "~", "2024-01-01", "1:30", "0x1f", "1_000", ".5", "=", "<<", ".inf", "012"]
LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\x85\u2028\u2029")  # line ends that PyYAML loses
WORDS = st.one_of(st.text(LETTERS, max_size=12), st.sampled_from(TRAPS))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-2**70, 2**70), st.floats(allow_nan=False, allow_infinity=False), WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(WORDS, inner, max_size=4)), max_leaves=12)


def read(text):
    """The value that an option file with this text holds."""
    return yaml.load(text, Loader=OptionLoader)  # noqa: S506  a SafeLoader


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        (tmp_path / name).write_text(text)
        return tmp_path / name
    return write


def refusal(path, *overrides):
    """The one line with which the options are refused."""
    with pytest.raises(InputError) as caught:
        load(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@QUICK
@given(VALUES)
def test_dumped_values_come_back(value):
    """Whatever the dumper writes, the loader reads as the same value of the same type."""
    found = read(yaml.dump({"x": value}, Dumper=OptionDumper, allow_unicode=True, sort_keys=False))["x"]
    assert found == value and repr(found) == repr(value)


@QUICK
@given(VALUES)
def test_dumped_values_are_plain_yaml(value):
    """PyYAML's own safe loader reads the dumped file alike: it surprises no other program."""
    assert yaml.safe_load(yaml.dump(value, Dumper=OptionDumper, allow_unicode=True)) == value


@QUICK
@given(st.floats(min_value=1e-300, max_value=1e300), st.sampled_from(["{:.3e}", "{:.0e}", "{:e}", "{!r}", "{:.1E}"]))
def test_numbers_with_exponents(number, form):
    """3e-4, 1E+05, 2.5e3: every usual way to write a float is one, and its value is Python's."""
    text = form.format(number)
    assert read(text) == float(text)


@pytest.mark.parametrize("text, value", [
    ("1e-3", 1e-3), ("-.5", -0.5), ("3.", 3.0), ("off", "off"), ("no", "no"), ("on", "on"), ("true", True), ("False", False),
    ("null", None), ("~", None), ("2024-01-01", "2024-01-01"), ("1:30", "1:30"), ("0x1f", "0x1f"), ("012", "012"), ("007", "007"),
    ("1_000", "1_000"), (".inf", ".inf"), (".nan", ".nan"), ("12", 12), ("-0", 0), ("[1, 1e2, a]", [1, 100.0, "a"])])
def test_plain_words(text, value):
    """YAML 1.2's reading of plain words: no octal, no sexagesimal, no dates, `off` is a word."""
    found = read(text)
    assert found == value and type(found) is type(value)


def test_defaults_and_name(write):
    """An empty file is all defaults, and its name is the run's."""
    options = load(write("my_run.yaml", "# nothing\n"))
    assert options.name == "my_run" and options.train.batch == 32 and options.method is None
    assert options.folder.as_posix() == "out/my_run"


def test_inheritance(write, tmp_path):
    """Sections are laid over the base's key by key, lists and null replace, bases of bases count, names are not inherited."""
    write("a.yaml", "name: a\nseed: 3\nloss: {x: 1, y: 2}\n"
                    "train: {lr: 1e-3, epochs: 4, schedule: multistep, milestones: [1, 2]}\n")
    (tmp_path / "deep").mkdir()
    write("deep/b.yaml", "base: ../a.yaml\ntrain: {milestones: [3]}\nloss: {y: 5}\n")
    options = load(write("c.yaml", "base: deep/b.yaml\ntrain: {epochs: null, steps: 7}\n"))
    assert (options.name, options.seed, options.loss) == ("c", 3, {"x": 1, "y": 5})
    assert (options.train.lr, options.train.epochs, options.train.steps, options.train.milestones) == (1e-3, None, 7, [3])


def test_another_method_starts_empty(write):
    """A section that names another module drops the base's options of it, in a file and on the command line."""
    write("a.yaml", "method: {name: idhand, width: 0.5}\n")
    tree, _ = read_tree(write("b.yaml", "base: a.yaml\nmethod: {name: other, depth: 3}\n"))
    assert tree["method"] == {"name": "other", "depth": 3}
    tree, _ = read_tree(write("c.yaml", "base: a.yaml\n"), ["method.depth=4", "method.name=other"])
    assert tree["method"] == {"name": "other", "depth": 4}
    assert read_tree(write("d.yaml", "base: a.yaml\nmethod: {name: idhand, depth: 3}\n"))[0]["method"]["width"] == 0.5


def test_overrides(write):
    """Numbers, lists, null, words that YAML 1.1 takes for false, a section's own options, a mapping laid over a section."""
    path = write("a.yaml", "method: {name: idhand}\ntrain: {epochs: 2}\nloss: {verts: 1}\n")
    options = load(path, ["train.lr=3e-4", "train.schedule=multistep", "train.milestones=[5, 10]", "train.epochs=null",
                          "train.steps=9", "train.amp=off", "method.backbone=resnet50", "loss={edge: 2}", "name='7'",
                          "hand_left=x=y.npz", "loss.pose=0.5"])
    assert (options.train.lr, options.train.milestones, options.train.epochs, options.train.amp) == (3e-4, [5, 10], None, "off")
    assert options.method.backbone == "resnet50" and options.loss == {"verts": 1, "edge": 2, "pose": 0.5}
    assert (options.name, options.hand_left) == ("7", "x=y.npz")


def test_named_section_is_its_modules(write):
    """`method: {name: idhand}` is checked by src/idhand.py, and dump keeps what that class knows."""
    options = load(write("a.yaml", "method: {name: idhand, iterations: 2}\n"))
    assert type(options.method).__module__ == "src.idhand"
    assert yaml.safe_load(dump(options))["method"]["iterations"] == 2


def test_dump_repeats(write):
    """The dumped form is an option file that gives equal options."""
    options = load(write("a.yaml", "train: {epochs: 2, lr: 1e-5}\nmethod: {name: idhand}\nhand: 'off'\n"))
    assert load(write("b.yaml", dump(options))) == options


@pytest.mark.parametrize("text, message", [
    ("train: {lrr: 0.1}", "a.yaml: train.lrr = 0.1: there is no such option; did you mean train.lr?"),
    ("trian: {lr: 0.1}", "a.yaml: trian = {'lr': 0.1}: there is no such option; did you mean train?"),
    ("weight_decay: 0.1", "a.yaml: weight_decay = 0.1: there is no such option; did you mean train.weight_decay?"),
    ("train: {lr: fast}", "a.yaml: train.lr = 'fast': expected a valid number"),
    ("train: {lr: -1}", "a.yaml: train.lr = -1: expected greater than 0"),
    ("train: {lr: .inf}", "a.yaml: train.lr = '.inf': expected a valid number"),
    ("train: {lr: 1e999}", "a.yaml: expected yaml, found a file that breaks (1e999 is not a finite number"),
    ("train: {amp: fp8}", "a.yaml: train.amp = 'fp8': expected 'off', 'bf16' or 'auto'"),
    ("train: {milestones: [3, x]}", "a.yaml: train.milestones.1 = 'x': expected a valid integer"),
    ("train: {epochs: 2, steps: 3}", "a.yaml: train: epochs = 2 and steps = 3: give one and set the other to null"),
    ("name: 2024", "a.yaml: name = 2024: expected a valid string; in quotes it is one: name: '2024'"),
    ("train: {lr: 1, lr: 2}", "key `lr` is given twice"),
    ("seed: 1\nseed: 2", "key `seed` is given twice"),
    ("train: &x {lr: 1}\ntest: *x", "anchors (& and *) are not read here; use base:"),
    ("train: [1, 2", "a.yaml: expected yaml, found a file that breaks"),
    ("just words", "a.yaml: expected `key: value` lines, found a str"),
    ("? [a, b]\n: 1", "a key must be a word"),
    ("hand: !!python/object/apply:os.system ['false']", "could not determine a constructor for the tag"),
    ("base: [a, b]", "base = ['a', 'b']: expected the name of one option file"),
    ("base: nowhere.yaml", "nowhere.yaml (base: of "),
    ("base: a.yaml", "base: goes in a circle"),
    ("method: {backbone: resnet18}", "a.yaml: method: expected a section with a name, one of ['boukhayma', 'cmr', 'idhand'"),
    ("method: {name: idhnd}", "a.yaml: method: name: no src/idhnd.py; there are ['boukhayma', 'cmr', 'idhand'"),
    ("method: {name: idhand, backbon: resnet18}", "a.yaml: method.backbon = 'resnet18': there is no such option; "
     "did you mean method.backbone?"),
    ("method: {name: idhand, iterations: none}", "a.yaml: method.iterations = 'none': expected a valid integer"),
    ("loss: {verts: heavy}", "a.yaml: loss.verts = 'heavy': expected a valid number"),
    ("train: {overfit: maybe}", "a.yaml: train.overfit = 'maybe': expected true or false"),
    ("train: {overfit: []}", "a.yaml: train.overfit = []: expected true or false"),
    ("train: 5", "a.yaml: train = 5: expected options, e.g. train.split=..."),
    ("loss: 5", "a.yaml: loss = 5: expected options, e.g. loss.NAME=..."),
    ("method: {name: cmr, registration: fast}",
     "a.yaml: method.registration = 'fast': expected options, e.g. method.registration.solver=..."),
    ("train: {lr: x, epochs: y, batch: z}", "(and 2 more)"),
])
def test_refusals_of_a_file(write, text, message):
    """One line: the file, the key path, the value, what is allowed, the nearest known key."""
    assert message in refusal(write("a.yaml", text))


@pytest.mark.parametrize("override, message", [
    ("train.lrr=1", "command line: train.lrr = 1: there is no such option; did you mean train.lr?"),
    ("lr=1", "command line: lr = 1: there is no such option; did you mean train.lr?"),
    ("train.lr=fast", "command line: train.lr = 'fast': expected a valid number"),
    ("train.lr", "command line: 'train.lr': expected key=value, e.g. train.lr=3e-4"),
    ("=3", "command line: '=3': expected key=value"),
    ("a..b=3", "command line: 'a..b=3': expected key=value"),
    ("train.lr=", "command line: 'train.lr=': the value is missing"),
    ("train.milestones=[1, 2", "command line: 'train.milestones=[1, 2': the value is not yaml"),
    ("seed.x=1", "command line: seed.x=1: seed is 3, not a section"),
    ("base=b.yaml", "a base is given in the option file"),
    ("name=5", "command line: name = 5: expected a valid string"),
])
def test_refusals_of_an_override(write, override, message):
    """Overrides are refused in the same words, and the command line is named, not the file."""
    assert message in refusal(write("a.yaml", "seed: 3\n"), override)


def test_the_file_that_set_it_is_named(write):
    """A wrong value inherited from a base is reported in the base."""
    write("low.yaml", "train: {lr: -1, batch: 4}\n")
    assert refusal(write("top.yaml", "base: low.yaml\ntrain: {batch: 8}\n")).split(": ")[0].endswith("low.yaml")


@pytest.mark.parametrize("text, override, places, remedy", [
    ("train: {epochs: 39}", "train.steps=3", "a.yaml and command line", "; add train.epochs=null"),
    ("train: {steps: 3}", "train.epochs=39", "command line and ", "; add train.steps=null"),
    ("train: {epochs: 39, steps: 3}", "seed=1", "a.yaml", ""),
    ("seed: 1", "train={epochs: 39, steps: 3}", "command line", ""),
])
def test_options_that_clash_name_both_places(write, text, override, places, remedy):
    """Options of a section that exclude each other: every place that set one, and what to add where the file gave the other."""
    message = refusal(write("a.yaml", text), override)
    assert message.endswith("train: epochs = 39 and steps = 3: give one and set the other to null" + remedy)
    assert places in message.split(": train: ")[0] and message.count("command line") == ("command" in places)


def test_longer_circle(write):
    """A circle over two files names both."""
    write("b.yaml", "base: a.yaml\n")
    message = refusal(write("a.yaml", "base: b.yaml\n"))
    assert "a.yaml -> " in message and "b.yaml -> " in message


def test_missing_file_names_the_nearest(write, tmp_path):
    """A misspelt option file: the nearest in its folder, or in options/; a folder is called one."""
    write("baseline.yaml", "")
    assert refusal(tmp_path / "baselin.yaml").endswith("did you mean " + str(tmp_path / "baseline.yaml") + "?")
    assert "did you mean options/quickstart.yaml?" in refusal("options/quikstart.yaml")
    assert "a folder, not an option file" in refusal(tmp_path)


@QUICK
@given(st.dictionaries(st.sampled_from(["seed", "train", "loss", "method", "base", "name", "zzz"]), VALUES, max_size=4))
def test_any_yaml_is_options_or_one_line(tmp_path_factory, tree):
    """Whatever a file holds, it is read or refused by InputError; never another exception, never two lines."""
    path = tmp_path_factory.mktemp("any") / "a.yaml"
    path.write_text(yaml.dump(tree, Dumper=OptionDumper, allow_unicode=True))
    try:
        assert math.isfinite(load(path).train.lr)
    except InputError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("command, overrides, expected", [
    ("calibrate", ["measured=wrist_to_middle_tip:190mm", "n=7", "hand=x.npz", "out=a"],
     {"calibrate.measured": "wrist_to_middle_tip:190mm", "calibrate.n": 7, "hand": "x.npz", "calibrate.out": "a"}),
    ("calibrate", ["calibrate.n=7", "seed=3", "train.lr=0.5"], {"calibrate.n": 7, "train.lr": 0.5}),
    ("refine", ["predictions=p.npz", "solver.iterations=3", "device=cpu"],
     {"refine.predictions": "p.npz", "refine.solver.iterations": 3, "device": "cpu"}),
    ("demo", ["input=a.jpg", "method.name=idhand", "crop.pixels=64"],
     {"demo.input": "a.jpg", "method.name": "idhand", "crop.pixels": 64}),
    ("check", ["hand=x.npz"], {"hand": "x.npz"}), ("calibrate", [], {"name": "calibrate"}),
    ("calibrate", ["name=me"], {"name": "me"})])
def test_commands_without_an_option_file(command, overrides, expected):
    """Keys of the command's own section may stand bare, nested ones too; others, and dotted ones of other sections, as ever."""
    options = load(None, overrides, command)
    for path, value in expected.items():
        found = options
        for key in path.split("."):
            found = getattr(found, key)
        assert found == value, path
    assert load(None, [], command).model_copy(update={"name": ""}) == type(options)()


def test_dump_without_an_option_file_repeats(write):
    """What a command without a file was told is, dumped, an option file that says the same."""
    options = load(None, ["measured=palm_width:84mm", "n=3", "hand=x.npz"], "calibrate")
    assert load(write("again.yaml", dump(options))) == options


@pytest.mark.parametrize("command, override, message", [
    ("calibrate", "measurd=1", "command line: calibrate.measurd = 1: there is no such option; did you mean calibrate.measured?"),
    ("refine", "solver.iteration=1", "command line: refine.solver.iteration = 1: there is no such option; "
     "did you mean refine.solver.iterations?"),
    ("calibrate", "hnad=x", "command line: hnad = 'x': there is no such option; did you mean hand?"),
    ("calibrate", "lr=1", "command line: lr = 1: there is no such option; did you mean train.lr?"),
    ("calibrate", "zzz=1", "command line: zzz = 1: there is no such option; known are name, out, seed"),
    ("calibrate", "n=many", "command line: calibrate.n = 'many': expected a valid integer"),
    ("calibrate", "n", "command line: 'calibrate.n': expected key=value"),
    ("demo", "=x", "command line: '=x': expected key=value")])
def test_refusals_without_an_option_file(command, override, message):
    """One line that names the command line, the key and the nearest option, be it of the command's section or of all."""
    with pytest.raises(InputError) as caught:
        load(None, [override], command)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("words, expected", [
    ("calibrate measured=a:1mm n=2", (None, ["measured=a:1mm", "n=2"])), ("calibrate", (None, [])),
    ("calibrate options/x.yaml n=2", ("options/x.yaml", ["n=2"])), ("train options/x.yaml", ("options/x.yaml", [])),
    ("export metro_tsv options/x.yaml --out here a=1 b.c=2", ("options/x.yaml", ["a=1", "b.c=2"])),
    ("export metro_tsv options/x.yaml a=1 --out here b.c=2", ("options/x.yaml", ["a=1", "b.c=2"])),
    ("export --out here metro_tsv options/x.yaml a=1", ("options/x.yaml", ["a=1"]))])
def test_command_lines(words, expected):
    """Option file and overrides are found wherever --out stands, and no file is needed where key=value alone will do."""
    found = arguments(words.split())
    assert (found.option_file, found.overrides) == expected


@pytest.mark.parametrize("words, message", [
    ("train", "arguments are required: option_file;"), ("train train.lr=3", "expected an option file before train.lr=3"),
    ("export metro_tsv", "arguments are required: --out, option_file"),
    ("train options/x.yaml --oops", "unrecognized arguments: --oops"),
    ("export metro_tsv options/x.yaml --out here oops", "unrecognized arguments: oops"),
    ("convert mano a.pkl --out b.npz c=d", "unrecognized arguments: c=d"), ("export metro options/x.yaml --out a", "'metro'")])
def test_wrong_command_lines(words, message, capsys):
    """Exit code 2 and one line that says what is wanted."""
    with pytest.raises(SystemExit) as stopped:
        arguments(words.split())
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and message in said and said.count("\n") == 1


def test_misspelt_in_a_list(tmp_path):
    """A key of a section that lies in a list, or in a named section there, is told with the nearest one of that section."""
    for part, near in (("{wieght: 2, dataset: {name: freihand}}", "train.0.weight"),
                       ("{dataset: {name: freihand, versoins: [gs]}}", "train.0.dataset.versions")):
        (tmp_path / "m.yaml").write_text(f"dataset: {{name: mixed, train: [{part}]}}\n")
        with pytest.raises(InputError, match=f"there is no such option; did you mean dataset.{near}"):
            load(tmp_path / "m.yaml", [])
