"""What is refused in a file before torch reads it: bombs, and pickles that would take the process down.

torch's restricted unpickler runs no code, but it may be made to take any amount of time, memory or C stack.
"""

import os
import pickletools
import zipfile
from pathlib import Path
from typing import BinaryIO

from utils.errors import UserError, printable

LARGEST_PICKLE = 64 * 2**20  # bytes; a ResNet-152 with AdamW's moments has 0.3 MB
MOST_OPERATIONS = 2_000_000  # of one pickle; it has 80,000
DEEPEST_TUPLE, LARGEST_TUPLE = 50, 1_000_000  # depth, and members with those of the members
PICKLES_OF_OLD_FORMAT = 5  # in a row: magic number, protocol, system, content, keys of storages
# Called while unpickling, these make what no file stores: bytearray(10**10), or a tensor of nested lists.
BUILDERS = ("builtins bytearray", "__builtin__ bytearray")


def refuse_bombs(path: str | Path) -> None:
    """Raise UserError if a file is a bomb, of whichever of torch's formats it is."""
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":  # as torch decides
            file.seek(0)
            for _ in range(PICKLES_OF_OLD_FORMAT):
                scan_pickle(file, path)
            return
    with zipfile.ZipFile(path) as archive:
        refuse_compressed(archive, path)
        for entry in archive.infolist():
            if entry.filename.endswith("data.pkl"):
                if entry.file_size > LARGEST_PICKLE:
                    raise UserError(f"{path}: refused: {printable(entry.filename)} has {entry.file_size:,} bytes")
                with archive.open(entry) as file:
                    scan_pickle(file, path)


def refuse_compressed(archive: zipfile.ZipFile, path: str | Path) -> None:
    """torch stores entries as they are; those that inflate, overlap or have one name are not torch's."""
    total, names = 0, set()
    for entry in archive.infolist():
        name = printable(entry.filename)
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise UserError(
                f"{path}: refused: {name} is compressed ({entry.compress_size:,} to {entry.file_size:,} bytes),\n"
                "and torch does not compress; unpack the archive if it holds a checkpoint"
            )
        if entry.filename in names:
            raise UserError(f"{path}: refused: two entries are called {name}")
        names.add(entry.filename)
        total += entry.file_size
    size = os.path.getsize(path)
    if total > size:
        raise UserError(f"{path}: refused: its entries overlap ({total:,} bytes in a file of {size:,})")


def scan_pickle(file: BinaryIO, path: str | Path) -> None:
    """Raise UserError if one pickle is too long, or nests tuples too deep, or builds what no file stores.

    Python hashes a tuple that is a key by going through all its members, without a limit on depth or repetition.
    A pickle that is cut short or malformed is left for torch to refuse.
    """
    stack = TupleStack()
    try:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if number >= MOST_OPERATIONS:
                raise UserError(f"{path}: refused: its pickle has more than {MOST_OPERATIONS:,} operations")
            if opcode.name == "GLOBAL" and is_builder(argument):
                raise UserError(
                    f"{path}: refused: holds more than tensors and plain data (GLOBAL {printable(argument)})"
                )
            stack.apply(opcode, argument)
            if stack.depth > DEEPEST_TUPLE or stack.size > LARGEST_TUPLE:
                raise UserError(f"{path}: refused: nests tuples {stack.depth} deep, {stack.size:,} members in all")
    except UserError:
        raise
    except Exception:  # genops on a malformed pickle, in any way
        return


def is_builder(name: str) -> bool:
    """Whether a class, as "module name", makes large objects from a few bytes."""
    return name in BUILDERS or (name.startswith("torch") and name.endswith("Tensor"))


class TupleStack:
    """Follows a pickle's stack as far as tuples are concerned: everything else is a leaf.

    What the last operation made: `depth` of tuples in tuples; `size`, members counted as often as they are repeated.
    """

    def __init__(self):
        self.stack: list[tuple[int, int] | None] = []  # (depth, size); None is a mark
        self.memo: dict[int, tuple[int, int]] = {}
        self.depth, self.size = 0, 1

    def apply(self, opcode: pickletools.OpcodeInfo, argument: object) -> None:
        name = opcode.name
        if name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            self.push_tuple(self.pop_to_mark() if name == "TUPLE" else self.pop(int(name[-1])))
        elif name in ("REDUCE", "NEWOBJ"):  # as torch.Size of a tuple, which is one
            self.push_tuple(self.pop(2))
        elif name == "MARK":
            self.stack.append(None)
        elif name in ("APPENDS", "SETITEMS"):
            self.pop_to_mark()
        elif name in ("APPEND", "BUILD"):
            self.pop(1)
        elif name == "SETITEM":
            self.pop(2)
        elif name == "BINPERSID":
            self.pop(1)
            self.stack.append((0, 1))
        elif opcode.stack_after:  # a number, a text, an empty container, a class
            self.stack.append((0, 1))

    def pop(self, count: int) -> list[tuple[int, int]]:
        members = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return members

    def pop_to_mark(self) -> list[tuple[int, int]]:
        count = 0
        while self.stack[-1 - count] is not None:
            count += 1
        members = self.pop(count)
        self.pop(1)
        return members

    def push_tuple(self, members: list[tuple[int, int]]) -> None:
        self.depth = 1 + max((depth for depth, _ in members), default=0)
        self.size = 1 + sum(size for _, size in members)
        self.stack.append((self.depth, self.size))
