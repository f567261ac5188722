"""The config reader: what YAML and command lines become, what they are refused for, and with which message."""

import dataclasses
import typing

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import FinetuneConfig, PretrainConfig
from utils.config import from_dict, keys_affecting, parse_command_line, parse_entry, to_dict, to_yaml
from utils.errors import UserError
from utils.hints import ALIASES, nearest_key
from utils.knobs import knobs, yaml_text
from utils.strict_yaml import StrictLoader

BOTH = pytest.mark.parametrize("config_class", [PretrainConfig, FinetuneConfig])


@pytest.fixture
def read(tmp_path):
    """Reads the given text as recipe.yaml, with the words after it as the rest of the command line."""

    def read_text(text, *words, config_class=PretrainConfig):
        (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
        return parse_command_line(config_class, ["--config", str(tmp_path / "recipe.yaml"), *words], "a test")

    return read_text


@pytest.fixture
def refusal(read):
    """The same for what is refused: returns the message."""

    def refused(text, *words, **options):
        with pytest.raises(UserError) as caught:
            read(text, *words, **options)
        return str(caught.value)

    return refused


def chain(folder, **files):
    """Writes name=text pairs as NAME.yaml; returns a reader of one of them."""
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return lambda name, *words: parse_command_line(PretrainConfig, ["--config", str(folder / name), *words], "a test")


def value_of(config, key):
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


@BOTH
def test_nothing_given_is_the_defaults(config_class):
    assert parse_command_line(config_class, [], "a test") == config_class()


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("optimizer.learning_rate", "1e-3", 0.001),
        ("optimizer.learning_rate", "2.5E+2", 250.0),
        ("optimizer.learning_rate", ".5", 0.5),
        ("schedule.warmup_epochs", "2", 2.0),
        ("schedule.epochs", "1200", 1200),
        ("train.images_per_device", "null", None),
        ("train.tf32", "false", False),
        ("data.mean", "[0, 1, 1e-1]", (0.0, 1.0, 0.1)),
        ("data.val_resize_size", "240", (240,)),
        ("data.val_resize_size", "[240, 250]", (240, 250)),
        ("run.weights", "no", "no"),
        ("run.weights", "~", None),
        ("run.output_dir", "runs/1:30", "runs/1:30"),
    ],
)
def test_values_are_what_a_reader_of_the_yaml_expects(read, key, text, value):
    section, name = key.split(".")
    for config in (
        read(f"{section}: {{{name}: {text}}}", config_class=FinetuneConfig),
        read("", f"{key}={text}", config_class=FinetuneConfig),
    ):
        result = value_of(config, key)
        assert result == value and type(result) is type(value)
        assert not isinstance(result, tuple) or [type(item) for item in result] == [type(item) for item in value]


WRONG_TYPES = [
    ("schedule.epochs", "a whole number", ["012", "0x10", "1:30", "1_000", "1e3", "3.0", "true", "null", "[3]", "x"]),
    ("schedule.warmup_epochs", "a number", ["012", "1:30", "true", "yes", "null", ".nan", "1 epoch", "{a: 1}"]),
    ("model.sync_batch_norm", "true or false", ["no", "yes", "on", "True", "1", "null", "[true]"]),
    ("train.tf32", "true or false or null", ["no", "0"]),
    ("data.crop_ratio", "a list of 2 numbers", ["0.5", "ab", "[0.5]", "[0.1, 0.5, 1.0]", "[]", "null", "0.1 1.0"]),
    ("data.crop_ratio", "a number", ["[a, b]", "[null, 1]", "[[0.1], 1]", "[false, true]"]),
    ("data.val_resize_size", "a list of at least one number", ["[]"]),
    ("data.val_resize_size", "a whole number", ["[235.0]", "true", "null"]),
]


@pytest.mark.parametrize(("key", "expected", "texts"), WRONG_TYPES)
def test_wrong_type_is_refused_naming_key_value_and_what_is_expected(refusal, key, expected, texts):
    section, name = key.split(".")
    for text in texts:
        message = refusal(f"{section}: {{{name}: {text}}}", config_class=FinetuneConfig)
        assert f"recipe.yaml: {key} = " in message and f"must be {expected}" in message, text
        message = refusal("", f"{key}={text}", config_class=FinetuneConfig)
        assert message.startswith(f"command line: {key} = ") and f"must be {expected}" in message, text


@pytest.mark.parametrize("text", ["3", "1e-3", "true", "[a]", "null"])
def test_text_that_looks_like_something_else_must_be_quoted_in_yaml_only(read, refusal, text):
    assert "run.output_dir = " in refusal(f"run: {{output_dir: {text}}}")
    assert read(f"run: {{output_dir: '{text}'}}").run.output_dir == text
    if text != "null":
        assert read("", "--output-dir", text).run.output_dir == text


@BOTH
def test_null_is_for_optional_knobs_only(config_class):
    optional = 0
    for key, knob in knobs(config_class).items():
        section, name = key.split(".")
        saved = {section: {name: None}}
        if type(None) in typing.get_args(knob.hint):
            optional += 1
            assert value_of(from_dict(config_class, saved, "test"), key) is None
        else:
            with pytest.raises(UserError, match=rf"^test: {key} = null: must be "):
                from_dict(config_class, saved, "test")
    assert 5 < optional < len(knobs(config_class)) - 5


@pytest.mark.parametrize(
    ("text", "words", "key"),
    [
        ("run: {seed: 1, seed: 2}", [], "'seed' is given twice"),
        ("run: {seed: 1}\nrun: {device: cpu}", [], "'run' is given twice"),
        ("base: a.yaml\nbase: b.yaml", [], "'base' is given twice"),
        ("", ["run.seed=1", "run.seed=1"], "run.seed is given twice"),
        ("", ["--epochs", "30", "schedule.epochs=30"], "schedule.epochs is given twice"),
        ("", ["run.output_dir=x", "--output-dir", "y"], "run.output_dir is given twice"),
        ("", ["--epochs", "30", "--epochs", "40"], "given twice"),
    ],
)
def test_a_knob_given_twice_in_one_place_is_refused(refusal, text, words, key):
    assert key in refusal(text, *words)


@BOTH
def test_a_typo_in_any_knob_fails_naming_file_key_value_and_nearest(refusal, config_class):
    for key in knobs(config_class):
        section, name = key.split(".")
        last = key[-1]
        complaint = f"{key}{last} = 5: unknown key; nearest valid name: {key}"
        assert f"recipe.yaml: {complaint}" in refusal(f"{section}: {{{name}{last}: 5}}", config_class=config_class)
        assert f"command line: {complaint}" in refusal("", f"{key}{last}=5", config_class=config_class)
        complaint = f"recipe.yaml: {section}z.{name} = 5: unknown key; nearest valid name: {key}"
        assert complaint in refusal(f"{section}z: {{{name}: 5}}", config_class=config_class)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("run: 3", "recipe.yaml: run = 3: must be a section"),
        ("run: [seed]", "must be a section"),
        ("run:", "must be a section"),
        ("run.seed: 3", "run.seed = 3: must be a section: `run: {seed: …}`"),
        ("lr: 3", "lr = 3: must stand in a section: write `optimizer: {learning_rate: …}`"),
        ("batch_size: 3", "batch_size = 3: must stand in a section: write `train: {batch_size: …}`"),
        ("- run", "holds a list, not sections"),
        ("false", "holds a bool, not sections"),
        ("run", "holds a str, not sections"),
        ("run: {seed: 1", "not a config"),
        ("a: {}\n---\nb: {}", "not a config"),
        ("run: {seed: " + "[" * 5000, "not a config"),
        ("base: [a.yaml]", "base = ['a.yaml']: must be the name of one YAML file"),
        ("base: absent.yaml", "absent.yaml: cannot read this config"),
        ("runn: {}", "must be a section"),
    ],
)
def test_file_that_is_no_config_is_refused_by_name(refusal, text, complaint):
    message = refusal(text)
    assert complaint in message and ".yaml: " in message


def test_unreadable_files_are_refused_by_name(tmp_path):
    (tmp_path / "image.yaml").write_bytes(b"\x89PNG\xff\xfe")
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(UserError, match=f"{path.name}: cannot read this config"):
            parse_command_line(PretrainConfig, ["--config", str(path)], "a test")
    with pytest.raises(UserError, match=r"image\.yaml: not a config: no text in UTF-8 .*goes after --weights"):
        parse_command_line(PretrainConfig, ["--config", str(tmp_path / "image.yaml")], "a test")


@pytest.mark.parametrize("path", ["/dev/zero", "large.yaml"])
def test_what_is_too_large_for_a_config_is_not_read_whole(path, tmp_path):
    (tmp_path / "large.yaml").write_text("# " + "x" * 2**21)
    with pytest.raises(UserError, match=r"has more than 1,048,576 characters, so it is no config"):
        parse_command_line(PretrainConfig, ["--config", str(tmp_path / path)], "a test")


def test_a_flag_of_the_other_entry_is_told():
    with pytest.raises(UserError, match=r"--eval-only: unknown; it is a flag of finetune\.py"):
        parse_entry(PretrainConfig, ["--eval-only"], "a test", other_entry=("finetune.py", FinetuneConfig))


@pytest.mark.parametrize(
    "value",
    [
        "!!int x",
        "!!int ''",
        "!!bool x",
        "!!float x",
        "!!timestamp x",
        "!!map x",
        "{[a]: 1}",
        "{{a: b}: 1}",
        "9" * 5000,
        "!!binary x",
        "!custom x",
        "&a [*a]",
    ],
)
def test_malformed_value_is_refused_without_a_traceback(refusal, value):
    assert "recipe.yaml: " in refusal(f"run: {{seed: {value}}}")


@pytest.mark.parametrize(
    "word",
    [
        "run.seed=!!bool x",
        "run.seed={[a]: 1}",
        "run.seed=" + "[" * 5000,
        "optimizer.learning_rate=" + "9" * 400,
        "run.seed=[1",
        "run.seed=" + "9" * 5000,
        "run.seed=*a",
    ],
)
def test_malformed_override_is_refused_without_a_traceback(refusal, word):
    assert f"command line: {word.partition('=')[0]} = " in refusal("", word)


def test_aliases_are_refused_before_they_can_grow(refusal):
    laughs = "a0: &a0 {x: 1}\n" + "".join(f"a{n + 1}: &a{n + 1} [{f'*a{n}, ' * 9}]\n" for n in range(30))
    assert "aliases and tags are not allowed" in refusal(laughs)
    assert "aliases and tags are not allowed" in refusal("run: &a {seed: 1}\ndata: *a")
    assert "run.<<" in refusal("run: {<<: {seed: 1}}")


@pytest.mark.parametrize("tag", ["object/apply:os.system", "object/new:os.system", "name:os.system", "module:os"])
def test_python_tags_run_nothing(refusal, tmp_path, tag):
    attack = f"!!python/{tag} ['touch {tmp_path}/executed']"
    assert "not a config" in refusal(f"run: {{output_dir: {attack}}}")
    assert "run.seed = " in refusal("", f"run.seed={attack}")
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    "key", ["run.__class__", "__init__.x", "run.__dict__.seed", "__class__.__init__", "run.problems", "data.problems"]
)
def test_overrides_reach_knobs_and_nothing_else(refusal, key):
    assert f"command line: {key} = x: unknown key" in refusal("", f"{key}=x")
    section, _, name = key.partition(".")
    assert f"recipe.yaml: {key} = x: unknown key" in refusal(f"{section}: {{{name}: x}}")
    assert PretrainConfig().run.__class__.__name__ == "PretrainRunOptions" and PretrainConfig().run.seed == 0


def test_bases_are_overridden_key_by_key_and_the_command_line_comes_last(tmp_path):
    read_file = chain(
        tmp_path,
        recipes__child="base: ../middle.yaml\nrun: {seed: 3}",
        middle="base: deep/root.yaml\nrun: {seed: 2, device: cpu}\noptimizer: {weight_decay: 0.2}",
        deep__root="run: {seed: 1, device: cuda, deterministic: true}\nschedule: {epochs: 90}",
    )
    config = read_file("recipes/child.yaml")
    assert (config.run.seed, config.run.device, config.run.deterministic) == (3, "cpu", True)
    assert (config.optimizer.weight_decay, config.schedule.epochs) == (0.2, 90)
    assert config.optimizer.learning_rate == PretrainConfig().optimizer.learning_rate
    assert read_file("recipes/child.yaml", "run.seed=4", "--epochs", "91").run.seed == 4
    assert read_file("recipes/child.yaml", "--epochs", "91").schedule.epochs == 91


@pytest.mark.parametrize(
    "files", [{"a": "base: a.yaml"}, {"a": "base: ./b.yaml", "b": "base: c.yaml", "c": "base: a.yaml"}]
)
def test_a_circle_of_bases_is_refused(tmp_path, files):
    with pytest.raises(UserError, match=r"a\.yaml: base: leads back to this file"):
        chain(tmp_path, **files)("a.yaml")


def test_a_complaint_names_the_file_of_the_chain_that_gave_the_value(tmp_path):
    read_file = chain(
        tmp_path,
        child="base: root.yaml\nrun: {sed: 1}\ntrain: {batch_size: 0}",
        root="run: {seed: -1}\ntrain: {batch_size: 0, precision: half}",
        late="base: early.yaml\nschedule: {epochs: 10}",
        early="schedule: {warmup_epochs: 12}",
    )
    with pytest.raises(UserError) as caught:
        read_file("child.yaml", "loss.gamma=0")
    origins = {line.split(" = ")[0] for line in str(caught.value).splitlines()}
    assert origins == {
        f"{tmp_path}/child.yaml: run.sed",
        f"{tmp_path}/child.yaml: train.batch_size",
        f"{tmp_path}/root.yaml: run.seed",
        f"{tmp_path}/root.yaml: train.precision",
        "command line: loss.gamma",
    }
    with pytest.raises(UserError, match=r"early\.yaml: schedule\.warmup_epochs = 12\.0: must be below .* 10"):
        read_file("late.yaml")
    with pytest.raises(UserError, match=r"command line: schedule\.warmup_epochs = 11\.0"):
        read_file("late.yaml", "schedule.warmup_epochs=11")
    with pytest.raises(UserError, match=r"^default: schedule\.warmup_epochs = 20\.0: must be below .* 5$"):
        parse_command_line(PretrainConfig, ["--epochs", "5"], "a test")


def test_everything_wrong_in_a_file_is_reported_at_once(refusal):
    lines = refusal(
        "run: {seed: -1, device: gpu}\nmodle: {name: resnet18}\ntrain: {batch_size: 1.5}\nfilter: {radius: 3}"
    ).splitlines()
    assert [line.split(": ")[1].split(" = ")[0] for line in lines] == [
        "run.seed",
        "run.device",
        "modle.name",
        "train.batch_size",
    ]
    assert "run.device = gpu: must be one of auto, cpu, cuda; nearest: cpu" in lines[1]
    both = refusal("schedule: {epochs: 2, warmup_epochs: 2}\ndata: {crop_ratio: [1, 0.5], aspect_ratio: [2, 1]}")
    assert len(both.splitlines()) == 3


def test_flags_lists_and_overrides_mix_on_one_command_line():
    words = "--crop-ratio 0.1 1.0 --val-resize-size 234 235 236 model.name=resnet18 --eval-only --weights 1e3".split()
    config = parse_command_line(FinetuneConfig, words, "a test")
    assert config.data.crop_ratio == (0.1, 1.0) and config.data.val_resize_size == (234, 235, 236)
    assert (config.model.name, config.run.eval_only, config.run.weights) == ("resnet18", True, "1e3")
    assert config.run.output_dir == "runs/unnamed" and type(config.run.weights) is str


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("--epoch 3", "--epoch: unknown; write --epochs 3"),
        ("epochs=3", "epochs=3: unknown; write --epochs 3"),
        ("--seed 3", "--seed: unknown; write run.seed=3"),
        ("--seed", "--seed: unknown; write run.seed=VALUE"),
        ("optimizer.learning-rate=1", "write optimizer.learning_rate=1"),
        ("--lr 0.1", "write optimizer.learning_rate=0.1"),
        ("--lr=0.1", "write optimizer.learning_rate=0.1"),
        ("lr=0.1", "write optimizer.learning_rate=0.1"),
        ("--output_dir x", "write --output-dir x"),
        ("--batch_size 8", "write --batch-size 8"),
        ("--bs 8 --wd 0.1", "write --batch-size 8\ncommand line: --wd: unknown; write optimizer.weight_decay=0.1"),
        ("--arch resnet18", "write model.name=resnet18"),
        ("--model resnet18", "write model.name=resnet18"),
        ("--workers 2", "write data.workers=2"),
        ("-j 2", "write data.workers=2"),
        ("--resum auto", "write --resume auto"),
        ("--pretrained x.pt", "write --weights x.pt"),
        ("optimizer.lr=0.1", "optimizer.lr = 0.1: unknown key; nearest valid name: optimizer.learning_rate"),
        ("train.lr=0.1", "nearest valid name: optimizer.learning_rate"),
        ("model.epochs=3", "nearest valid name: schedule.epochs"),
        ("optimizer.wd=1", "nearest valid name: optimizer.weight_decay"),
        ("train.seed=1", "nearest valid name: run.seed"),
        ("model.arch=x", "nearest valid name: model.name"),
        ("checkpoint.every_step=1", "nearest valid name: checkpoint.every_steps"),
        ("qqqq.zzzz=1", "qqqq.zzzz = 1: unknown key; --help lists all"),
        ("--zzzz 1", "--zzzz: unknown; --help lists all"),
        ("stray", "stray: unknown"),
        ("--epochs", "argument --epochs: expected one argument"),
    ],
)
def test_unknown_words_are_named_with_what_they_may_have_meant(words, hint):
    with pytest.raises(UserError) as caught:
        parse_command_line(PretrainConfig, words.split(), "a test")
    assert str(caught.value).startswith("command line: ") and hint in str(caught.value)


def test_every_other_name_of_a_knob_leads_to_a_knob():
    either = knobs(PretrainConfig).keys() | knobs(FinetuneConfig).keys()
    assert set(ALIASES.values()) <= either
    for alias, key in ALIASES.items():
        assert nearest_key(f"--{alias.replace('_', '-')}", either) == key or alias in {k.split(".")[1] for k in either}


def test_ten_complaints_are_listed_and_the_others_counted(refusal):
    lines = refusal("", *[f"run.unknown{number}=1" for number in range(17)]).splitlines()
    assert len(lines) == 11 and lines[9].startswith("command line: run.unknown9") and lines[10] == "and 7 more"
    assert len(refusal("", *[f"run.unknown{number}=1" for number in range(10)]).splitlines()) == 10


def test_a_complaint_quotes_a_long_value_in_part(refusal):
    assert len(refusal("", "run.seed=" + "9" * 5000)) < 200


ENTRIES = {"pretrain.py": PretrainConfig, "finetune.py": FinetuneConfig}


@pytest.mark.parametrize(
    ("entry", "text", "words", "complaint"),
    [
        ("pretrain.py", "data: {mixup_alpha: 0.1}\nrun: {seed: 1}", [], "this is a config of finetune.py"),
        ("finetune.py", "filter: {radius: 3}", [], "this is a config of pretrain.py"),
        ("finetune.py", "loss: {gamma: 3}", ["loss.name=ce"], "this is a config of pretrain.py"),
        ("finetune.py", "filter: {radius: 3}\nmodel: {names: x}", [], "it is a knob of pretrain.py"),
        ("pretrain.py", "", ["data.mixup_alpha=1"], "it is a knob of finetune.py"),
        ("pretrain.py", "", ["data.mixup_alpha_=1"], "unknown key"),
    ],
)
def test_the_other_entrys_config_is_recognised(entry, text, words, complaint, tmp_path):
    (tmp_path / "recipe.yaml").write_text(text)
    [other] = ENTRIES.items() - {(entry, ENTRIES[entry])}
    with pytest.raises(UserError, match=complaint) as caught:
        parse_entry(ENTRIES[entry], ["--config", str(tmp_path / "recipe.yaml"), *words], "a test", other)
    if "this is" in complaint:
        assert str(caught.value).count("\n") == 0


def test_an_entry_without_words_shows_its_usage():
    with pytest.raises(UserError, match=r"\nusage: .*--config FILE.*section\.key=value"):
        parse_entry(PretrainConfig, [], "a test", ("finetune.py", FinetuneConfig))


@BOTH
def test_help_lists_every_knob_with_default_unit_and_flag(config_class, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_command_line(config_class, ["--help"], "What this program does.")
    out = capsys.readouterr().out
    assert ended.value.code == 0 and "What this program does." in out and "--config" in out
    lines = out.splitlines()
    assert len(knobs(config_class)) > 40
    for key, knob in knobs(config_class).items():
        line = next(line for line in lines if line.startswith(f"  {key} = "))
        default = yaml.load(line.partition(" = ")[2], StrictLoader)
        if isinstance(knob.default, tuple):
            default = tuple(default)
        assert default == knob.default
        details = lines[lines.index(line) + 1]
        assert knob.meaning in details and knob.unit in details and (knob.flag or "") in details
    assert "(pixels; ≥ 8 and ≤ 4096)" in out and "one of auto, cpu, cuda" in out and "> 0 and ≤ 1; --crop-ratio" in out


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
numbers = st.floats(0, 1e30)


@settings(deadline=None)  # the first example also pays for imports
@given(
    st.fixed_dictionaries(
        {
            "run": st.fixed_dictionaries(
                {"output_dir": names, "weights": st.none() | names, "seed": st.integers(0, 2**63 - 1)}
            ),
            "data": st.fixed_dictionaries(
                {
                    "crop_ratio": st.tuples(st.floats(1e-300, 0.5), st.floats(0.5, 1)),
                    "val_resize_size": st.lists(st.integers(224, 10**6), min_size=1, unique=True).map(tuple),
                }
            ),
            "optimizer": st.fixed_dictionaries(
                {"learning_rate": numbers, "clip_grad_norm": st.none() | numbers.filter(bool)}
            ),
            "train": st.fixed_dictionaries({"tf32": st.sampled_from([None, True, False])}),
        }
    )
)
def test_a_config_survives_its_dict(values):
    sections = {
        section.name: dataclasses.replace(section.default, **values.get(section.name, {}))
        for section in dataclasses.fields(FinetuneConfig)
    }
    config = FinetuneConfig(**sections)
    assert from_dict(FinetuneConfig, to_dict(config), "a checkpoint") == config
    assert yaml.safe_load(to_yaml(to_dict(config))) == to_dict(config)  # plain containers and exact numbers


@pytest.mark.parametrize("name", ["runs/a", "no", "null", "~", "", "12", "1:30", "# x", "a: b", "*a", "é\n", "1e3"])
def test_a_config_survives_its_yaml(read, name):
    words = ["data.mean=[1e-7, 1e-300, 1]", "optimizer.learning_rate=1e-5", "filter.clamp=[-1, 1e22]", "run.seed=12"]
    config = from_dict(
        PretrainConfig, to_dict(read("", *words)) | {"run": {"output_dir": name, "weights": name}}, "test"
    )
    assert config.data.mean == (1e-7, 1e-300, 1.0) and config.filter.clamp == (-1.0, 1e22)
    assert config.run.weights == name
    assert read(to_yaml(to_dict(config))) == config


def test_a_saved_dict_is_checked_like_a_file():
    saved = to_dict(PretrainConfig())
    saved["optimizer"]["learning_rat"] = saved["optimizer"].pop("learning_rate")
    with pytest.raises(
        UserError, match=r"old\.pt: optimizer\.learning_rat = 0\.0012: unknown key; nearest .*learning_rate"
    ):
        from_dict(PretrainConfig, saved, "old.pt")


@BOTH
def test_every_knob_affects_weights_or_score_or_nothing(config_class):
    parts = [keys_affecting(config_class, effect) for effect in ("weights", "score", "nothing")]
    assert sorted(key for part in parts for key in part) == sorted(knobs(config_class))
    assert keys_affecting(config_class, "score", "nothing") == parts[1] | parts[2]
    assert "run.output_dir" in parts[2] and "optimizer.learning_rate" in parts[0]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "null"), (True, "true"), ((1, 0.5, None), "[1, 0.5, null]"), ([[False]], "[[false]]"), ("a b", "a b")],
)
def test_values_in_messages_are_written_as_in_yaml(value, text):
    assert yaml_text(value) == text
