"""Two hundred mutated files of weights: each is refused with a reason or taken with finite numbers, and nothing else.

Bytes are flipped, ends cut off, pickles rewritten with odd but allowed content, tensors given other shapes, types and
names. While they are read nothing may start a process or write a file; time and memory are bounded.
"""

from __future__ import annotations

import argparse
import collections
import resource
import signal
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.schema import FinetuneConfig
from tests.support.weights import as_torchvision, classifier, lively, load
from utils.config import to_dict
from utils.errors import UserError

pytestmark = [pytest.mark.faults, pytest.mark.slow]
MUTATIONS, SECONDS, MEGABYTES = 200, 60, 2048  # of one file; of address space more than before
CLASSES = ["ant", "bee", "cat"]
FORBIDDEN = ("subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "os.startfile", "socket.")


class Watch:
    """What Python's audit events tell while `active`: processes started, connections made, files opened to write."""

    def __init__(self):
        self.active, self.seen = False, []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple) -> None:
        if not self.active:
            return
        if event.startswith(FORBIDDEN):
            self.seen.append(event)
        elif event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            self.seen.append(f"open {arguments[0]} {arguments[1]}")
        elif event in ("os.remove", "os.rename", "os.mkdir", "os.truncate"):
            self.seen.append(f"{event} {arguments[0]}")


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@contextmanager
def bounded(watch: Watch) -> Iterator[None]:
    """Fewer than SECONDS, and MEGABYTES of address space more than now."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEGABYTES * 2**20, before[1]))
    signal.alarm(SECONDS)  # its signal ends the tests: nothing in Python need be able to catch it
    watch.active = True
    try:
        yield
    finally:
        watch.active = False
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, before)


def sound_contents() -> list[dict]:
    """Of this project, of torchvision's script, of CoinCheung/MFM, and a plain state dict."""
    torch.manual_seed(0)
    state = lively(classifier("resnet18", len(CLASSES))).state_dict()
    theirs = as_torchvision(state)
    coincheungs = as_torchvision(state)
    coincheungs["args"].use_dali = True
    own = {"model": state, "config": to_dict(FinetuneConfig()), "classes": CLASSES, "step": 3, "images": 24}
    own["config"]["model"]["name"] = "resnet18"
    return [own, theirs, coincheungs, dict(state)]


def odd_value(draw: np.random.Generator) -> object:
    """Something that torch's restricted unpickler lets in."""
    nested: list = []
    for _ in range(60):
        nested = [nested, nested]
    values = [
        None, True, -1, 10**300, float("nan"), "", "a\n\x1b[2J", "x" * 10**5, b"\xff", [], {}, (), {1, 2}, nested,
        collections.Counter("ab"), collections.OrderedDict(a=1), argparse.Namespace(use_dali=1), complex(1, 2),
        torch.tensor(float("nan")), torch.zeros(0), torch.zeros(3, dtype=torch.int8), torch.float16, torch.Size([1]),
        torch.zeros(1).expand(10**6, 10**6), torch.zeros(2, device="meta"), torch.device("cpu"),
    ]  # fmt: skip
    return values[draw.integers(len(values))]


def odd_tensor(tensor: torch.Tensor, draw: np.random.Generator) -> object:
    spoilt = tensor.clone().float()
    number = int(draw.integers(max(1, spoilt.numel())))
    spoilt.flatten()[number] = [float("nan"), float("inf"), -1e38, 3e38][draw.integers(4)]
    others = [
        spoilt, spoilt, tensor[None], tensor.flatten()[:-1], tensor.to(torch.complex64), tensor.long(), tensor > 0,
        tensor.to_sparse(), tensor.half() * 6e4, tensor.double() * 1e300, tensor.to("meta"),
        torch.zeros(()).expand(tensor.shape), odd_value(draw),
    ]  # fmt: skip
    return others[draw.integers(len(others))]


def mutated_content(content: dict, draw: np.random.Generator) -> dict:
    """The content with one to three things put in the place of others."""
    content = {key: dict(value) if isinstance(value, dict) else value for key, value in content.items()}
    for _ in range(draw.integers(1, 4)):
        state = content["model"] if isinstance(content.get("model"), dict) else content
        names = list(state)
        if not names:
            break
        name = names[draw.integers(len(names))]
        kind = draw.integers(5)
        if kind == 0 and isinstance(state[name], torch.Tensor):
            state[name] = odd_tensor(state[name], draw)
        elif kind == 1:
            state[["module." + name, "", name + "\n", "🙂" * 99, name.upper()][draw.integers(5)]] = state.pop(name)
        elif kind == 2:
            content[list(content)[draw.integers(len(content))]] = odd_value(draw)
        elif kind == 3 and isinstance(content.get("config"), dict):
            section = list(content["config"])[draw.integers(len(content["config"]))]
            content["config"][section] = {"name": odd_value(draw), "mean": odd_value(draw)}
        elif kind == 4:
            content[("classes", "config", "args", "epoch", "ema")[draw.integers(5)]] = odd_value(draw)
    return content


def mutate_bytes(path: Path, draw: np.random.Generator) -> None:
    content = bytearray(path.read_bytes())
    kind = draw.integers(4)
    if kind == 0:
        content = content[: draw.integers(len(content))]
    elif kind == 1:  # anywhere
        for _ in range(draw.integers(1, 9)):
            content[draw.integers(len(content))] ^= 1 << int(draw.integers(8))
    elif kind == 2:  # in the directory at the end
        for _ in range(draw.integers(1, 5)):
            content[-int(draw.integers(1, 2000))] = draw.integers(256)
    else:
        start = int(draw.integers(len(content)))
        content[start:start] = draw.bytes(int(draw.integers(1, 100)))
    path.write_bytes(content)


def mutate_pickle(path: Path, draw: np.random.Generator) -> None:
    """Bytes of the pickle flipped, in an archive whose checksums are right."""
    with zipfile.ZipFile(path) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries:
            if name.endswith("data.pkl"):
                content = bytearray(content)
                for _ in range(draw.integers(1, 4)):
                    content[draw.integers(len(content))] = draw.integers(256)
            archive.writestr(name, bytes(content))


def write_mutated(contents: list[dict], path: Path, seed: int) -> None:
    draw = np.random.default_rng(seed)
    content = contents[draw.integers(len(contents))]
    kind = seed % 4
    if kind < 2:
        content = mutated_content(content, draw)
    new_format = bool(kind == 3 or draw.integers(4))
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    if kind == 2:
        mutate_bytes(path, draw)
    if kind == 3:
        mutate_pickle(path, draw)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux, which tells the address space")
def test_no_mutated_file_is_taken_with_bad_numbers_or_does_anything_else(tmp_path, watch):
    contents, taken, refused = sound_contents(), [], []
    for seed in range(MUTATIONS):
        path = tmp_path / "w.pt"
        write_mutated(contents, path, seed)
        network = classifier("resnet18", len(CLASSES))
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        try:
            with bounded(watch):
                report = load(network, path, classes=CLASSES).report
        except UserError as error:
            refused.append(seed)
            message = str(error)
            assert len(message.splitlines()) <= 3 and message.replace("\n", "").isprintable(), (seed, message)
            assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items()), (seed, message)
        else:
            taken.append(seed)
            assert report.isprintable(), (seed, report)
            assert all(tensor.isfinite().all() for tensor in network.state_dict().values()), seed
        assert watch.seen == [], (seed, watch.seen)
        assert [child.name for child in tmp_path.iterdir()] == ["w.pt"], seed
    assert len(taken) > 10 and len(refused) > 100  # else the mutations are too weak, or everything is refused


def test_the_watch_sees_what_it_is_for(tmp_path, watch):
    watch.active = True
    (tmp_path / "x").write_text("x")
    (tmp_path / "x").rename(tmp_path / "y")
    watch.active = False
    assert len(watch.seen) == 2 and watch.seen[0].startswith("open ")
    watch.seen.clear()


@pytest.mark.parametrize("number", range(4))
def test_the_files_are_taken_before_they_are_mutated(number, tmp_path):
    torch.save(sound_contents()[number], tmp_path / "w.pt")
    report = load(classifier("resnet18", len(CLASSES)), tmp_path / "w.pt", classes=CLASSES).report
    assert "122 tensors matched" in report
