"""Text as a sequence of characters: the King James Bible, which comes with Laptime, or any UTF-8 file."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from laptime.data import files
from laptime.data.source import DataSource
from laptime.errors import UserError
from laptime.lap.timed_loader import Batch
from laptime.machine.hardware import require_free_memory
from laptime.record.directory import expanded

KJV = Path(__file__).parent / "text_files" / "kjv.txt.gz"
_KJV_SHA256 = "8814b10b8a1678faac6d3a8e20d97809eeb03d7a7921fdc72cfb4ffce6ba9e24"
_NUM_CODE_POINTS = 0x110000
# The code points, the tokens, and masks over them, while a text is read: bytes for each byte of the file.
_READING_BYTES = 16


@dataclass(kw_only=True)
class Text(DataSource):
    """A text whose characters are the tokens. The last tenth is the test set.

    The fields are the keys of the config group `dataset`. conf/dataset/text.yaml explains them and sets the defaults.

    Attributes:
        vocabulary: the distinct characters in order of their code points; a token is the index of its character. Empty
            before `load`, unless it was set to that of a trained network.
    """

    path: str | None
    context_length: int
    val_fraction: float
    limit: int | None
    pipeline: Literal["memory"]

    name: ClassVar[str] = "text"

    def __post_init__(self) -> None:
        self.vocabulary = ""
        if self.context_length < 1:
            raise ValueError(f"context_length={self.context_length}: must be at least 1.")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction={self.val_fraction}: must be in [0, 1).")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit}: must be at least 1, or null for all characters.")

    @property
    def tokens_per_sample(self) -> int:
        return self.context_length

    @property
    def network_arguments(self) -> dict[str, Any]:
        return {"vocab_size": len(self.vocabulary), "context_length": self.context_length}

    @property
    def description(self) -> str:
        return f"sequences of {self.context_length} tokens from a vocabulary of {len(self.vocabulary)}"

    @property
    def recorded_sizes(self) -> dict[str, Any]:
        return {"shape": [self.context_length], "vocab_size": len(self.vocabulary)}

    def logits_shape(self, size: int) -> tuple[int, ...]:
        return (size, self.context_length, len(self.vocabulary))

    def example(self, size: int, device: torch.device | str) -> Batch:
        tokens = torch.zeros(size, self.context_length, dtype=torch.int64, device=device)
        return tokens, tokens.clone()

    @property
    def setting(self) -> str:
        """The key that names the text, with its value, for messages."""
        return f"dataset={self.name}" if self.path is None else f"dataset.path={self.path}"

    def load(self) -> tuple[Tensor, str]:
        """Read the text, and set `vocabulary` to its characters if it is empty.

        Returns:
            The tokens, uint8 if there are at most 256 characters, otherwise int32, (number of characters,); and a
            checksum: the first 16 hex digits of the SHA-256 of the file's content.

        Raises:
            UserError: the file is missing or is no UTF-8 text, or the vocabulary lacks a character.
        """
        content = files.unpacked(KJV, _KJV_SHA256) if self.path is None else self._read(self.path)
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.setting}: is not UTF-8 text (byte {error.start + 1:,}: {error.reason}). Convert it, e.g. with "
                "iconv -f latin1 -t utf-8."
            ) from error
        codes = np.frombuffer(text[: self.limit].encode("utf-32-le"), np.uint32)
        return self._encode(codes), hashlib.sha256(content).hexdigest()[:16]

    def decode(self, tokens: list[int]) -> str:
        """Return the text of some tokens."""
        return "".join(self.vocabulary[token] for token in tokens)

    def _read(self, name: str) -> bytes:
        path = expanded("dataset.path", name)
        try:
            require_free_memory(
                self.setting, _READING_BYTES * path.stat().st_size, "text{ranks}", 1, "Use a shorter text."
            )
            return path.read_bytes()
        except FileNotFoundError as error:
            raise UserError(f"{self.setting}: there is no such file. Give the path of a UTF-8 text file.") from error
        except IsADirectoryError as error:
            raise UserError(f"{self.setting}: is a folder. Give the path of a UTF-8 text file.") from error
        except OSError as error:
            raise UserError(f"{self.setting}: can't be read ({error.strerror or error}).") from error

    def _encode(self, codes: np.ndarray) -> Tensor:
        """Return the tokens of code points (N,)."""
        used = np.flatnonzero(np.bincount(codes, minlength=_NUM_CODE_POINTS))
        characters = "".join(map(chr, used))
        self.vocabulary = self.vocabulary or characters
        unknown = [character for character in characters if character not in set(self.vocabulary)]
        if unknown:
            named = ", ".join(f"{character!r} (U+{ord(character):04X})" for character in unknown[:3])
            raise UserError(
                f"{self.setting}: contains {named}{' and others' if len(unknown) > 3 else ''}, which the text of the "
                "training did not. Use a text with the same characters."
            )
        table = np.zeros(_NUM_CODE_POINTS, np.int32)
        table[[ord(character) for character in self.vocabulary]] = np.arange(len(self.vocabulary))
        return torch.from_numpy(table[codes].astype(np.uint8 if len(self.vocabulary) <= 256 else np.int32))
