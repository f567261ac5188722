"""Bombs, and pickles that would take the process down: refused before torch reads them."""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
import zipfile
from collections import Counter, OrderedDict

import pytest
import torch

from tests.support.launch import ROOT
from tests.support.memory import needs_proc, peak_megabytes
from utils.errors import UserError
from utils.run.checkpoint import read_checkpoint

DEEP = 1_000_000


def entries_of(path) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        return [(entry.filename, archive.read(entry)) for entry in archive.infolist()]


def rewritten(path, pickled: bytes | None = None, compression: int = zipfile.ZIP_STORED, repeat: int = 1) -> None:
    """The checkpoint again, with another pickle, compressed, or with its entries repeated."""
    entries = entries_of(path)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries * repeat:
            archive.writestr(name, pickled if pickled and name.endswith("data.pkl") else content)


def dict_pickle(key: bytes) -> bytes:
    """{key: None} in the opcodes that torch reads."""
    return b"\x80\x02}" + key + b"Ns."


def deep_tuple() -> bytes:
    return b")" + b"\x85" * DEEP


def repeated_tuple(times: int) -> bytes:
    """(), then `times` times a tuple of the one before, twice: 2^times members."""
    return b")q\x00" + b"".join(b"h\x00h\x00\x86q\x00" for _ in range(times))


PICKLES = {
    "a deep tuple as a key": (dict_pickle(deep_tuple()), "nests tuples 51 deep"),
    "a repeated tuple as a key": (dict_pickle(repeated_tuple(40)), "nests tuples .* members in all"),
    "a deep tuple in a list": (b"\x80\x02](" + deep_tuple() + b"e.", "nests tuples 51 deep"),
    "a bytearray": (dict_pickle(b"c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R"), r"GLOBAL __builtin__ bytearray"),
    "a tensor of lists": (dict_pickle(b"ctorch\nTensor\n](K\x01K\x02e\x85R"), "GLOBAL torch Tensor"),
    "an old tensor class": (dict_pickle(b"ctorch\nFloatTensor\nJ\xff\xff\xff\x7f\x85R"), "GLOBAL torch FloatTensor"),
}


@pytest.mark.parametrize("file_format", ["zip", "pickle"])
@pytest.mark.parametrize("pickled, reason", PICKLES.values(), ids=PICKLES)
def test_a_pickle_that_would_take_time_memory_or_the_process_is_refused(pickled, reason, file_format, tmp_path):
    path = tmp_path / "evil.pt"
    if file_format == "zip":
        torch.save({"model": {}}, path)
        rewritten(path, pickled)
    else:
        path.write_bytes(pickled)
    with pytest.raises(UserError, match=rf"evil\.pt: refused: .*{reason}") as raised:
        read_checkpoint(path, foreign=True)
    assert all(len(line) < 200 for line in str(raised.value).splitlines())


@pytest.mark.process
def test_a_deep_tuple_as_a_key_is_a_real_danger(tmp_path):
    """Python itself dies of it, so that no `except` would help."""
    program = f"t = ()\nfor _ in range({5 * DEEP}): t = (t,)\nhash(t)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode < 0


def test_deep_and_repeated_lists_are_read_and_do_no_harm(tmp_path):
    nested: list = []
    for _ in range(100):
        nested = [nested, nested]
    torch.save({"model": {"w": torch.ones(2)}, "extra": nested}, tmp_path / "w.pt")
    assert torch.equal(read_checkpoint(tmp_path / "w.pt")["model"]["w"], torch.ones(2))
    depth = 200_000
    rewritten(tmp_path / "w.pt", b"\x80\x02}X\x05\x00\x00\x00extra" + b"]" * depth + b"a" * (depth - 1) + b"s.")
    assert list(read_checkpoint(tmp_path / "w.pt")) == ["extra"]


def test_compressed_archives_are_refused_before_they_inflate(tmp_path):
    path = tmp_path / "bomb.pt"
    torch.save({"model": {"w": torch.zeros(1_000_000)}}, path)
    rewritten(path, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 20_000
    with pytest.raises(UserError, match=r"bomb\.pt: refused: .* is compressed \([\d,]+ to [\d,]+ bytes"):
        read_checkpoint(path)
    rewritten(path, compression=zipfile.ZIP_BZIP2)
    with pytest.raises(UserError, match="is compressed"):
        read_checkpoint(path, foreign=True)


@pytest.mark.process
@needs_proc
def test_a_bomb_takes_no_memory(tmp_path):
    torch.save({"model": {"w": torch.zeros(100_000_000)}}, tmp_path / "bomb.pt")
    rewritten(tmp_path / "bomb.pt", compression=zipfile.ZIP_DEFLATED)
    prepare = "from utils.run.checkpoint import read_checkpoint\nfrom utils.errors import UserError"
    measured = "try:\n    read_checkpoint(sys.argv[1])\n    raise SystemExit(1)\nexcept UserError:\n    pass"
    assert peak_megabytes(prepare, measured, str(tmp_path / "bomb.pt")) < 50


def test_entries_that_overlap_or_have_one_name_are_refused(tmp_path):
    path = tmp_path / "evil.pt"
    torch.save({"model": {"w": torch.zeros(1000)}}, path)
    whole = path.read_bytes()
    with pytest.warns(UserWarning, match="Duplicate name"):
        rewritten(path, repeat=2)
    with pytest.raises(UserError, match=r"refused: two entries are called .*data\.pkl"):
        read_checkpoint(path)
    # A directory that lists the largest entry twice more, under other names: the same bytes, three times.
    end = whole.rindex(b"PK\x05\x06")
    count, size, start = struct.unpack("<HII", whole[end + 10 : end + 20])
    directory = whole[start : start + size]
    entry = directory[directory.rindex(b"PK\x01\x02", 0, directory.index(b"data/0")) :]
    entry = entry[: entry.index(b"PK\x01\x02", 4)]
    for digit in (b"1", b"2"):
        directory += entry.replace(b"data/0", b"data/" + digit)
    ending = (
        whole[end : end + 8] + struct.pack("<HHII", count + 2, count + 2, len(directory), start) + whole[end + 20 :]
    )
    path.write_bytes(whole[:start] + directory + ending)
    with pytest.raises(UserError, match=r"refused: its entries overlap \([\d,]+ bytes in a file of [\d,]+\)"):
        read_checkpoint(path)


@pytest.mark.parametrize("new_format", [True, False])
def test_what_training_saves_is_read(new_format, tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    content = {
        "model": OrderedDict(model.state_dict()), "optimizer": optimizer.state_dict(), "milestones": Counter([3, 3]),
        "parameter": model[0].weight, "nested": ((1, 2), (3, (4, (5,)))), "names": {("a", "b"): {1, 2}}, "bytes": b"x",
    }  # fmt: skip
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=new_format)
    read = read_checkpoint(tmp_path / "w.pt", foreign=True)
    assert read.keys() == content.keys() and read["nested"] == content["nested"] and read["names"] == content["names"]
    assert torch.equal(read["model"]["0.weight"], model[0].weight)


def test_a_pickle_cut_short_is_left_for_torch_to_refuse(tmp_path):
    (tmp_path / "cut.pt").write_bytes(pickle.dumps({"a": (1, 2)}, protocol=2)[:-4])
    with pytest.raises(UserError, match=r"cut\.pt: not a checkpoint, or cut short"):
        read_checkpoint(tmp_path / "cut.pt", foreign=True)
