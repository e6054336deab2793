import pytest

from tdsm.base.errors import UsageError
from tdsm.cli.main import parse
from tdsm.cli.options import preset, read_yaml, to_yaml
from tdsm.cli.presets import PRESETS
from tdsm.pipeline.config import RunConfig
from tdsm.pipeline.folder import create_run
from tests.tinyrun import tiny


def read(tmp_path, text):
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    return read_yaml(file, RunConfig())


@pytest.mark.parametrize(
    "config",
    [
        RunConfig(),
        tiny(probe__views=2, maps__size=(4, 5), init="a: b", seed=7, maps__selection="0,1"),
        *(make() for make in PRESETS.values()),
    ],
    ids=["defaults", "tiny", *PRESETS],
)
def test_what_is_written_reads_back_the_same(tmp_path, config):
    assert read(tmp_path, to_yaml(config)) == config


def test_a_file_changes_what_it_names_and_nothing_else(tmp_path):
    config = read(tmp_path, "train: {steps: 5, augment: {flip: true}}\nseed: 3\n")
    expected = RunConfig().model_dump()
    expected["seed"], expected["train"]["steps"], expected["train"]["augment"]["flip"] = 3, 5, True
    assert config.model_dump() == expected


def test_an_empty_file_changes_nothing(tmp_path):
    assert read(tmp_path, "# nothing\n") == RunConfig()


def test_later_ones_win(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("train: {steps: 5}\n")
    assert parse(["train"]).settings == PRESETS["digits"]()
    assert parse(["demo"]).settings == PRESETS["digits"]()
    assert parse(["demo", "--preset", "cifar10-small"]).settings == PRESETS["cifar10-small"]()
    config = parse(["train", "--seed", "3", f"--config={file}", "--preset=digits"]).settings
    assert config.train.steps == 5
    assert config.train.learning_rate == PRESETS["digits"]().train.learning_rate != RunConfig().train.learning_rate
    assert config.seed == 3


def test_a_resumed_run_starts_from_its_own_settings(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    create_run(path, tiny(seed=9), resume=False)
    arguments = ["demo", "--run", str(path), "--resume"]
    assert parse(arguments).settings == tiny(seed=9)
    assert parse([*arguments, "--train.steps", "11"]).settings == tiny(seed=9, train__steps=11)
    assert parse(arguments[:3]).settings == PRESETS["digits"]()
    assert parse([*arguments, "--preset", "cifar10-small"]).settings == PRESETS["cifar10-small"]()
    assert parse(["demo", "--run", str(tmp_path / "new"), "--resume"]).settings == PRESETS["digits"]()


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\nb: &b [*a, *a, *a]\ntrain: {steps: *b}\n",
        "train: " + "[" * 20_000,
        "# " + "x" * 2**20,
    ],
    ids=["aliases", "deep", "large"],
)
def test_a_file_that_unfolds_without_end_is_one_clear_error(tmp_path, text):
    with pytest.raises(UsageError, match=r"cannot be read as YAML|expected settings of at most"):
        read(tmp_path, text)


def test_an_unknown_preset_is_named_with_those_there_are():
    with pytest.raises(UsageError, match=r"--preset nope: unknown, expected one of digits, images, fashion-mnist, "):
        preset("nope")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sead: 1", "sead: unknown, perhaps you meant 'seed'"),
        ("train: {step: 1}", "train.step: unknown, perhaps you meant 'steps'"),
        ("train: {augment: {crops: 1}}", "train.augment.crops: unknown, perhaps you meant 'crop'"),
        ("train: {zzz: 1}", "train.zzz: unknown, expected one of accumulate, precision"),
        ("train: 3", "train is 3: "),
        ("train: {steps: many}", "train.steps is 'many': expected a whole number"),
        ("train: {steps: 1.5}", "train.steps is 1.5: "),
        ("train: {steps: -1}", "train.steps is -1: expected at least 0"),
        ("field: {widths: 8}", "field.widths is 8: "),
        ("field: {widths: [8, 0]}", "field.widths.1 is 0: "),
        ("maps: {reduction: max}", "maps.reduction is 'max': unknown reduction 'max'; expected one of mean, rgb, l2"),
        ("data: {source: [a]}", "data.source is ['a']: "),
        ("1: 2", "1"),
        ("- a", "expected settings by name, saw list"),
        ("just words", "expected settings by name, saw str"),
        ("a: [", "cannot be read as YAML"),
        ("!!python/object/apply:os.getcwd []", "cannot be read as YAML"),
    ],
    ids=lambda value: value[:20],
)
def test_a_wrong_entry_is_named(tmp_path, text, words):
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(f"--config {tmp_path}/settings.yaml: ")
    assert words in str(caught.value)


def test_every_wrong_entry_is_listed_at_once(tmp_path):
    with pytest.raises(UsageError) as caught:
        read(tmp_path, "seed: -1\ntrain: {steps: x, batch_siz: 3}\nmaps: {size: [0, 1]}\n")
    for words in ("seed is -1", "train.steps is 'x'", "perhaps you meant 'batch_size'", "maps.size.0 is 0"):
        assert words in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for path, words in ((tmp_path / "nothing.yaml", "no such file"), (tmp_path, "cannot be read as YAML")):
        with pytest.raises(UsageError, match=words):
            read_yaml(path, RunConfig())
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UsageError, match="cannot be read as YAML"):
        read_yaml(tmp_path / "binary", RunConfig())
