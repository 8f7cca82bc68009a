"""Random mutations of the corpus, reproducible by seed: for platforms without atheris."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

_BYTES = b'\0\1\n\r ".}~\x7f\x80\x81\xc0\xed\xfe\xff'
_COPIES = (2, 3, 10, 100, 1000)


class Mutator:
    """Makes new inputs from old ones."""

    def __init__(
        self, seeds: Sequence[bytes], words: Sequence[bytes], max_bytes: int, seed: int
    ) -> None:
        """
        Args:
            words: byte strings that the grammar knows.
            max_bytes: of an input.
            seed: the same one gives the same inputs.
        """
        self._seeds = list(seeds) or [b""]
        self._words = list(words) or [b"\x00"]
        self._max_bytes = max_bytes
        self._random = Random(seed)

    def next(self) -> bytes:
        random = self._random
        data = bytearray(random.choice(self._seeds))
        for _ in range(1 << random.randrange(5)):
            self._mutate(data)
        return bytes(data[: self._max_bytes])

    def _mutate(self, data: bytearray) -> None:
        random = self._random
        at = random.randrange(len(data) + 1)
        end = min(len(data), at + 1 + int(random.expovariate(0.1)))
        match random.randrange(9):
            case 0 if at < len(data):
                data[at] ^= 1 << random.randrange(8)
            case 1 if at < len(data):
                data[at] = random.choice(_BYTES)
            case 2:
                data[at:at] = random.choice(self._words)
            case 3:
                data[at:end] = random.choice(self._words)
            case 4:
                del data[at:end]
            case 5:
                data[at:at] = data[at:end] * random.choice(_COPIES)
                del data[self._max_bytes :]
            case 6:
                other = random.choice(self._seeds)
                start = random.randrange(len(other) + 1)
                data[at:end] = other[start : start + 1 + int(random.expovariate(0.02))]
            case 7:
                other = random.choice(self._seeds)
                data[at:] = other[random.randrange(len(other) + 1) :]
            case _:
                data[at:end] = random.randbytes(random.randrange(1, 9))
