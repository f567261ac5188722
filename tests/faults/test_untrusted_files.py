"""Files and words made to do harm: pickles that run code, YAML that builds objects, names that leave a folder."""

from __future__ import annotations

import pickle

import pytest
import torch

from configs.schema import PretrainConfig
from tests.support.helpers import image_folder
from tests.support.launch import FINETUNE, finetune, overriding, small_run
from utils.config import parse_command_line
from utils.errors import UserError
from utils.run.checkpoint import read_checkpoint


class Payload:
    """Unpickled, it leaves a file."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return exec, (f"open({self.trace!r}, 'w').close()",)


NESTINGS = {
    "alone": lambda load: load,
    "as weights": lambda load: {"model": load},
    "as arguments": lambda load: {"args": load, "model": {}},
    "as a tensor": lambda load: {"model": {"conv1.weight": load}},
    "deep in a config": lambda load: {
        "config": {"data": {"mean": [load]}}, "model": {}, "optimizer": {}, "step": 1
    },
    "as a key": lambda load: {load: 1},
}  # fmt: skip


def test_the_payload_is_armed(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "executed")))  # noqa: S301
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("nest", NESTINGS.values(), ids=NESTINGS)
@pytest.mark.parametrize("file_format", ["zip", "legacy", "plain pickle"])
@pytest.mark.parametrize("flag", ["--weights", "--resume"])
def test_nothing_in_a_malicious_file_runs(nest, file_format, flag, images, tmp_path):
    trace, path = tmp_path / "executed", tmp_path / "evil.pt"
    content = nest(Payload(trace))
    if file_format == "plain pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=file_format == "zip")
    with pytest.raises(UserError, match=r"evil\.pt: (refused|not a checkpoint)"):
        finetune(small_run(FINETUNE, images, tmp_path / "out", flag, str(path)))
    assert not trace.exists()


@pytest.mark.parametrize(
    "text",
    [
        "run: !!python/object/apply:os.system ['touch executed']",
        "run: {output_dir: !!python/name:os.system }",
        "a: &a [x, x]\nb: &b [*a, *a]\nrun: {output_dir: [*b, *b]}",
        "data: {mean: &m [0.4, 0.4, 0.4], std: *m}",
        "base: ../../../../etc/passwd",
        "run: {__class__: x}",
        "__init__: {__globals__: x}",
    ],
)
def test_hostile_yaml_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.yaml").write_text(text)
    with pytest.raises(UserError):
        parse_command_line(PretrainConfig, ["--config", str(tmp_path / "evil.yaml")], "")
    assert [path.name for path in tmp_path.iterdir()] == ["evil.yaml"]


@pytest.mark.parametrize("word", ["run.__class__=x", "run.seed.__class__=1", "__class__.x=1", "run.__dict__.seed=3"])
def test_overrides_reach_knobs_only(word):
    with pytest.raises(UserError, match="unknown key"):
        parse_command_line(PretrainConfig, [word], "")


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory):
    """The words of a finished finetuning of two classes, and its checkpoint's content."""
    root = tmp_path_factory.mktemp("finetuned")
    for split in ("train", "val"):
        image_folder(root / "images" / split)
    command = small_run(FINETUNE, root / "images", root / "out", "--val-resize-size", "32")
    assert finetune(command) == 0
    return command, read_checkpoint(root / "out/checkpoints/last.pt")


@pytest.mark.parametrize("name", ["../train", "..", "/etc", "ant/../bee", "\x00"])
def test_class_names_of_a_checkpoint_cannot_leave_the_folder(name, finetuned, tmp_path):
    command, saved = finetuned
    torch.save(saved | {"classes": ["ant", name]}, tmp_path / "evil.pt")
    words = overriding(command, "--eval-only", "--weights", str(tmp_path / "evil.pt"))
    with pytest.raises(UserError, match="its class folders are not those"):
        finetune(words)
