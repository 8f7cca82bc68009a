"""The interface of a fuzz target."""

from __future__ import annotations

import ast
import re
from abc import ABC, abstractmethod
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import ClassVar
from zlib import crc32

CORPUS = Path(__file__).with_name("corpus")
COVERED = Path(__file__).with_name("covered")
DICTIONARIES = Path(__file__).with_name("dictionaries")

_ESCAPE = re.compile(rb"\\(?:x([0-9a-f]{2})|(.))")


class RuleBrokenError(AssertionError):
    """An input made the code under test break a rule."""


class Target(ABC):
    """One parser of untrusted input, with the rules that hold for every input.

    Attributes:
        name: on the command line, of the folder in ``corpus/`` and of the file in
            ``dictionaries/``.
        max_bytes: the longest input that the drivers make.
        fixed_mutations: how many inputs ``scripts/fuzz --fixed`` makes: what some 20 s of a core
            allow.
    """

    name: ClassVar[str]
    max_bytes: ClassVar[int] = 4096
    fixed_mutations: ClassVar[int] = 50_000

    @abstractmethod
    def check(self, data: bytes) -> None:
        """Feed one input. Keep nothing of it: memory is checked over many inputs.

        Raises:
            RuleBrokenError: a rule of the target does not hold.
            Exception: whatever the code under test let escape.
        """

    def close(self) -> None:  # noqa: B027 - most targets hold nothing
        """Release what the target holds."""

    @property
    def dictionary(self) -> Path:
        """Byte strings that the grammar knows, in libFuzzer's format; mutations insert them."""
        return DICTIONARIES / f"{self.name}.dict"

    def words(self) -> list[bytes]:
        """The byte strings of the dictionary."""
        lines = self.dictionary.read_bytes().splitlines()
        return [_ESCAPE.sub(_unescaped, line[1:-1]) for line in lines]

    def seeds(self) -> list[bytes]:
        """The inputs of the corpus, by name, and those kept for what they cover."""
        named = [file.read_bytes() for file in sorted((CORPUS / self.name).iterdir())]
        return [*named, *kept_inputs(self.name)]


def kept_file(name: str) -> Path:
    """The file with the inputs of a target that an exploration found, a literal a line."""
    return COVERED / f"{name}.txt"


def kept_inputs(name: str) -> list[bytes]:
    """The inputs that cover what no seed does, the shortest first. See :mod:`.merge`."""
    return [ast.literal_eval(line) for line in kept_file(name).read_text().splitlines()]


def _unescaped(match: re.Match[bytes]) -> bytes:
    return bytes.fromhex(match[1].decode()) if match[1] else match[2]


def require(holds: object, rule: str) -> None:
    """
    Raises:
        RuleBrokenError: it does not hold.
    """
    if not holds:
        raise RuleBrokenError(rule)


def chunks_of(data: bytes) -> list[bytes]:
    """Split an input as a network might: the same input always in the same way."""
    random = Random(crc32(data))
    if len(data) <= 300 and random.random() < 0.3:
        return [data[at : at + 1] for at in range(len(data))]
    cuts = sorted({random.randrange(len(data) + 1) for _ in range(random.randrange(1, 9))})
    bounds = [0, *cuts, len(data)]
    return [data[a:b] for a, b in pairwise(bounds) if a < b]
