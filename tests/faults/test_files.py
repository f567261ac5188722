"""Faults of files: bad images, full and read-only disks, damaged checkpoints, a folder in use, hostile input."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import struct
import subprocess
import sys
import zlib
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

import finetune
import pretrain
from configs.schema import PretrainConfig
from data.augment import evaluation_crops, train_transform
from data.decode import decode_image
from data.folder import ImageFolder
from data.samples import TrainingSamples, label
from tests.support.helpers import image_folder
from tests.support.launch import FINETUNE, PRETRAIN, ROOT, overriding
from utils.config import parse_command_line
from utils.distributed import explain
from utils.errors import UserError
from utils.files import write_atomically
from utils.run.checkpoint import Checkpoints, read_checkpoint
from utils.run.job import find_resume, locked

BATCH = ["--batch-size", "8", "train.images_per_device=4", "schedule.epochs=1"]


@pytest.fixture
def images(tmp_path):
    """16 training images (2 steps of 8) and 4 validation images in 2 classes."""
    image_folder(tmp_path / "images/train", per_class=8)
    image_folder(tmp_path / "images/val", per_class=2, seed=1)
    return tmp_path / "images"


def words(entry: list[str], images: Path, output: Path, *more: str) -> list[str]:
    return overriding([*entry, *BATCH, "--data-path", str(images), "--output-dir", str(output)], *more)


# Bad images.


def png_claiming(side: int) -> bytes:
    """A small PNG file whose header says side × side pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def half(path: Path, kind: str) -> None:
    pixels = torch.randint(0, 256, (80, 90, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(pixels.numpy()).save(path, kind)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def vanish(path: Path) -> None:
    path.unlink()


BAD = {
    "zero bytes": (lambda path: path.write_bytes(b""), "the file is empty"),
    "half a PNG": (lambda path: half(path, "PNG"), "not a readable image"),
    "half a JPEG": (lambda path: half(path, "JPEG"), "not a readable image"),
    "random bytes": (lambda path: path.write_bytes(os.urandom(3000)), "not a readable image"),
    "HTML": (lambda path: path.write_text("<!DOCTYPE html><p>404</p>"), "not a readable image"),
    "decompression bomb": (lambda path: path.write_bytes(png_claiming(60_000)), "refused before decoding"),
    "vanished": (vanish, "cannot be read"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "cannot be read"),
}


@pytest.mark.parametrize(("spoil", "told"), BAD.values(), ids=BAD)
def test_a_bad_image_is_an_error_or_replaced_by_one_that_the_key_determines(spoil, told, images):
    folder = ImageFolder(str(images / "train"))
    transform = train_transform(32, (0.2, 1.0), (0.75, 4 / 3), 0.5)
    bad = Path(folder.path(3))
    spoil(bad)
    strict, lenient = (
        TrainingSamples(folder, transform, 7, partial(label, folder), skip_bad) for skip_bad in (False, True)
    )
    with pytest.raises(UserError, match=told) as caught:
        strict[0, 3]
    assert str(caught.value).startswith(str(bad))
    image, number, text = lenient[0, 3]
    assert text.startswith(f"{caught.value}; replaced by ")
    other = text.rpartition("replaced by ")[2]
    assert other != str(bad) and number == folder.labels[[folder.path(i) for i in range(16)].index(other)]
    again = lenient[0, 3]
    assert torch.equal(image, again[0]) and again[1:] == (number, text)
    assert len({lenient[epoch, 3][2] for epoch in range(8)}) > 2  # another epoch, another one in its place
    assert torch.equal(lenient[0, 4][0], strict[0, 4][0]) and lenient[0, 4][2] == ""


MEMORY_OF_DECODING = """
import resource, sys
from data.decode import decode_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
shape = decode_image(sys.argv[1]).shape
print(*shape, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_of_an_animation_one_frame_alone_takes_memory(tmp_path):
    frames = [Image.new("P", (800, 800), color) for color in range(200)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    command = [sys.executable, "-c", MEMORY_OF_DECODING, str(tmp_path / "moving.gif")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    *shape, kilobytes = map(int, ended.stdout.split())
    assert shape == [3, 800, 800] and kilobytes < 60_000  # all frames are 384 MB


def test_when_every_image_is_bad_skipping_ends(images):
    folder = ImageFolder(str(images / "train"))
    for index in range(16):
        Path(folder.path(index)).write_bytes(b"")
    with pytest.raises(UserError, match=r"nor can 20 images drawn in its place: run scripts/check_data\.py"):
        TrainingSamples(folder, lambda image: image, 7, partial(label, folder), True)[0, 0]


@pytest.mark.parametrize(("main", "entry"), [(pretrain.main, PRETRAIN), (finetune.main, FINETUNE)])
def test_skipped_images_are_counted_and_listed_and_the_run_is_reproducible(main, entry, images, tmp_path):
    (images / "train/ant/3.png").write_bytes(b"")
    (images / "train/bee/5.png").write_bytes(b"GIF89a")
    more = ["--val-resize-size", "32"] if main is finetune.main else []
    with pytest.raises(UserError, match=r"(ant/3|bee/5)\.png: not a readable image"):
        main(words(entry, images, tmp_path / "strict", *more))
    for name, workers in (("one", 0), ("two", 2)):
        assert (
            main(words(entry, images, tmp_path / name, *more, "data.on_bad_image=skip", f"data.workers={workers}")) == 0
        )
    lines = [json.loads(line) for line in (tmp_path / "one/log.jsonl").read_text().splitlines()]
    replaced = [line for line in lines if "replaced" in line]
    assert sum(line["replaced_images"] for line in replaced) == 2
    assert {Path(text.partition(":")[0]).name for line in replaced for text in line["replaced"]} == {"3.png", "5.png"}
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    weights = [read_checkpoint(tmp_path / name / "checkpoints/last.pt")["model"] for name in ("one", "two")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_evaluation_never_skips(images, tmp_path):
    (images / "val/bee/1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"val/bee/1\.png: not a readable image \(the file is empty\)"):
        finetune.main(words(FINETUNE, images, tmp_path / "out", "--val-resize-size", "32", "data.on_bad_image=skip"))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_the_slimmest_images_are_trained_on_and_evaluated_in_little_memory(size, tmp_path):
    Image.new("RGB", size, (10, 200, 30)).save(tmp_path / "slim.png")
    image = decode_image(str(tmp_path / "slim.png"))
    expected = torch.tensor([10, 200, 30], dtype=torch.uint8)[:, None, None]
    crops = evaluation_crops(image, (235, 256), 224)
    assert crops.shape == (2, 3, 224, 224) and (crops == expected).all()
    transform = train_transform(32, (0.2, 1.0), (0.75, 4 / 3), 0.5)
    assert (transform(image) == expected.expand(3, 32, 32)).all()


# Disks.

FULL_DISK = """
import os, sys
from utils.distributed import run_entry
import pretrain, utils.run.checkpoint
save = utils.run.checkpoint.Checkpoints.save
output = sys.argv[sys.argv.index("--output-dir") + 1]

def save_on_a_disk_that_fills_and_empties(self, step, content):
    fill = output + "/fill"
    if step == 2:  # half a checkpoint still fits
        with open(fill, "wb") as file:
            free = os.statvfs(output).f_bavail * os.statvfs(output).f_frsize
            file.write(bytes(max(0, free - utils.run.checkpoint.size_of(content) // 2)))
    elif os.path.exists(fill):
        os.remove(fill)
    return save(self, step, content)

utils.run.checkpoint.Checkpoints.save = save_on_a_disk_that_fills_and_empties
run_entry(pretrain.main, sys.argv[1:])
"""


@pytest.mark.skipif(not shutil.which("unshare"), reason="a small disk needs unshare (util-linux)")
@pytest.mark.parametrize("on_save_error", ["stop", "continue"])
def test_a_full_disk_leaves_the_earlier_checkpoint_and_stops_or_goes_on_as_told(on_save_error, images, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = words(
        PRETRAIN, images, disk / "run", "checkpoint.every_steps=1", "checkpoint.keep=1", "schedule.epochs=2",
        f"checkpoint.on_save_error={on_save_error}",
    )  # fmt: skip
    (tmp_path / "program.py").write_text(FULL_DISK)
    script = f'mount -t tmpfs -o size=450m none "{disk}" && mkdir "{disk}/run" && shift 0 && "$@"; code=$?; '
    script += f'ls "{disk}/run/checkpoints"; cp "{disk}/run/checkpoints/last.pt" "{tmp_path}/kept.pt"; exit $code'
    ended = subprocess.run(
        ["unshare", "-rm", "bash", "-c", script, "bash", sys.executable, str(tmp_path / "program.py"), *command],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    if ended.returncode and re.match("unshare|mount", ended.stderr):
        pytest.skip(f"no mount namespace here: {ended.stderr.strip()[:200]}")
    told = r"step_00000002\.pt: cannot be saved \(.*\); [\d,]+ bytes needed, [\d,]+ free; .*from .*step_00000001\.pt"
    if on_save_error == "stop":
        assert ended.returncode == 2, ended.stderr
        assert_matches("error: .*" + told, ended.stderr)
        assert ended.stdout.split()[-2:] == ["last.pt", "step_00000001.pt"]
    else:
        assert ended.returncode == 0, ended.stderr
        assert_matches("warning: .*" + told, ended.stdout)
        assert ended.stdout.split()[-2:] == ["last.pt", "step_00000004.pt"]
    assert read_checkpoint(tmp_path / "kept.pt")["step"] == (1 if on_save_error == "stop" else 4)


def assert_matches(pattern: str, text: str) -> None:
    assert re.search(pattern, text), text


def test_the_last_save_must_not_fail_even_where_others_may(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    saver = Checkpoints(tmp_path / "checkpoints", 3, None, 15, "continue")
    told = saver.attempt(5, {"model": {"weight": torch.zeros(10)}}, must=False)
    assert_matches(
        r"^warning: .*step_00000005\.pt: cannot be saved .* 40 bytes needed, .*there is no earlier one", told
    )
    with pytest.raises(UserError, match="cannot be saved"):
        saver.attempt(5, {}, must=True)


def as_nobody(task, queue) -> None:
    os.setuid(65534)
    try:
        task()
        queue.put("written")
    except UserError as error:
        queue.put(str(error))


def write_too_much(path: Path, queue) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    try:
        write_atomically(path, lambda file: file.write(bytes(1000)))
    except OSError as error:
        queue.put((error.filename, explain(error)))


def test_what_a_disk_refuses_is_named_whatever_file_it_is(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=write_too_much, args=(tmp_path / "result.json", queue))
    process.start()
    process.join()
    name, told = queue.get()
    assert (
        name == str(tmp_path / "result.json")
        and told == f"{name}: File too large; mend that, and go on with --resume auto"
    )
    assert not [*tmp_path.iterdir()]


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user")
def test_a_read_only_folder_is_named_and_its_checkpoints_stay(tmp_path):
    saver = Checkpoints(tmp_path / "checkpoints", 1, None, 15)
    saver.save(5, {"model": {}})
    for path in (tmp_path.parent.parent, tmp_path.parent, tmp_path, tmp_path / "checkpoints"):
        path.chmod(0o755)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=as_nobody, args=(lambda: saver.save(10, {"model": {}}), queue))
    process.start()
    process.join()
    told = queue.get()
    assert_matches(r"step_00000010\.pt: cannot be saved \(.*Permission denied.*from .*step_00000005\.pt", told)
    assert read_checkpoint(tmp_path / "checkpoints/last.pt")["step"] == 5


# Damaged checkpoints.


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(torch.ones(50).numpy().tobytes()) + 41] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip, lambda path: path.write_bytes(b"")])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_taken(damage, tmp_path, capsys):
    saver = Checkpoints(tmp_path / "checkpoints", 3, None, 15)
    first, second, third = (saver.save(step, {"model": {"w": torch.ones(50)}}) for step in (1, 2, 3))
    damage(third)
    assert find_resume(saver, "auto") == second
    assert f"warning: {third}: " in capsys.readouterr().out
    damage(second)
    assert find_resume(saver, "auto") == first
    damage(first)
    with pytest.raises(UserError, match="none of its checkpoints can be read"):
        find_resume(saver, "auto")


def test_a_run_goes_on_before_its_damaged_checkpoint_and_ends_alike(images, tmp_path):
    command = words(PRETRAIN, images, tmp_path / "out", "checkpoint.every_steps=1", "schedule.epochs=2")
    assert pretrain.main(command) == 0
    folder = tmp_path / "out/checkpoints"
    whole = read_checkpoint(folder / "last.pt")
    cut(folder / "step_00000004.pt")
    (folder / "step_00000009.pt.tmp").write_bytes(b"cut short by a kill")
    assert pretrain.main([*command, "--resume", "auto"]) == 0
    again = read_checkpoint(folder / "last.pt")
    assert again["step"] == 4 and all(
        torch.equal(again["model"][name], whole["model"][name]) for name in whole["model"]
    )
    assert (folder / "step_00000004.pt.abandoned").exists() and not list(folder.glob("*.tmp"))


@pytest.mark.parametrize("content", [{}, {"config": None}, {"config": "x", "model": {}}])
def test_what_is_no_checkpoint_to_resume_is_told(content, images, tmp_path):
    torch.save({"optimizer": {}, "step": 1} | content, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other\.pt: holds no training state to resume"):
        pretrain.main(words(PRETRAIN, images, tmp_path / "out", "--resume", str(tmp_path / "other.pt")))


# Two jobs, one folder.


def hold(folder: Path, ready, end) -> None:
    held = locked(folder)
    ready.set()
    end.wait()
    del held


def test_a_second_job_is_refused_while_the_first_lives_and_not_after_its_kill(images, tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, end = context.Event(), context.Event()
    first = context.Process(target=hold, args=(tmp_path / "out", ready, end), daemon=True)
    first.start()
    assert ready.wait(60)
    command = words(PRETRAIN, images, tmp_path / "out")
    with pytest.raises(UserError, match=rf"out: in use by host \S+, pid {first.pid}, since 20\d\d-\d\d-\d\d"):
        pretrain.main([*command, "--resume", "auto"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.lock"]
    first.kill()
    first.join()
    assert pretrain.main(command) == 0


# Hostile files.


class Payload:
    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return exec, (f"open({self.trace!r}, 'w').close()",)


NESTINGS = [
    lambda load: load,
    lambda load: {"model": load},
    lambda load: {"args": load, "model": {}},
    lambda load: {"model": {"conv1.weight": load}},
    lambda load: {"config": {"data": {"mean": [load]}}, "model": {}, "optimizer": {}, "step": 1},
    lambda load: {load: 1},
]


@pytest.mark.parametrize("nest", NESTINGS)
@pytest.mark.parametrize("legacy", [False, True, "plain pickle"])
@pytest.mark.parametrize("position", ["--weights", "--resume"])
def test_nothing_in_a_malicious_file_runs(nest, legacy, position, images, tmp_path):
    trace, path = tmp_path / "executed", tmp_path / "evil.pt"
    content = nest(Payload(trace))
    if legacy == "plain pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"evil\.pt: (refused|not a checkpoint)"):
        finetune.main(words(FINETUNE, images, tmp_path / "out", position, str(path)))
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


@pytest.mark.parametrize("name", ["../train", "..", "/etc", "ant/../bee", "\x00"])
def test_class_names_of_a_checkpoint_cannot_leave_the_folder(name, images, tmp_path):
    command = words(FINETUNE, images, tmp_path / "out", "--val-resize-size", "32")
    assert finetune.main(command) == 0
    saved = read_checkpoint(tmp_path / "out/checkpoints/last.pt")
    torch.save(saved | {"classes": ["ant", name]}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="its class folders are not those"):
        finetune.main(overriding(command, "--eval-only", "--weights", str(tmp_path / "evil.pt")))
