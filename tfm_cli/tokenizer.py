"""Text to pieces and back with SentencePiece: load a model, encode, decode."""

import hashlib
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import sentencepiece

from tfm_cli.errors import ModelError
from tfm_cli.tokenizer_training import SILENT, reason_of, train_tokenizer

__all__ = ["MAX_MODEL_BYTES", "Tokenizer", "train_tokenizer"]

MAX_MODEL_BYTES = 64 << 20
_LINES_PER_THREAD = 32  # below this, starting a thread costs more than it saves


class Tokenizer:
    """A SentencePiece model: lines to ids or pieces, and back.

    Args:
        model_bytes: a serialized SentencePiece model.
        name: what messages call it.

    Raises:
        ModelError: the bytes are no SentencePiece model, or it has no end-of-segment piece.
    """

    def __init__(self, model_bytes: bytes, *, name: str = "tokenizer") -> None:
        sentencepiece.SetMinLogLevel(SILENT)
        self.model_bytes = model_bytes
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model_bytes)
            self._pieces: list[str] = self._processor.IdToPiece(list(range(self.vocab_size)))
        except (RuntimeError, ValueError) as error:
            reason = "" if isinstance(error, UnicodeDecodeError) else reason_of(error)
            told = f": {reason}" if reason else ""
            raise ModelError(f"{name}: is no SentencePiece model{told}") from error
        if self.eos_id < 0:
            hint = "train the model without `eos_id=-1`"
            raise ModelError(f"{name}: has no `</s>`, wanted a piece that ends a line", hint=hint)

    @classmethod
    def load(cls, path: Path) -> Self:
        """The tokenizer in a `.model` file.

        Raises:
            ModelError: the file is missing, unreadable, over 64 MiB, or no SentencePiece model.
        """
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):  # a pipe or device might never end
                found = "a directory" if path.is_dir() else "no regular file"
                raise ModelError(f"{path}: is {found}, wanted a SentencePiece model")
            if status.st_size > MAX_MODEL_BYTES:
                found = f"{status.st_size} bytes, wanted a SentencePiece model"
                raise ModelError(f"{path}: has {found} of at most {MAX_MODEL_BYTES}")
            model_bytes = path.read_bytes()
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
        return cls(model_bytes, name=str(path))

    @property
    def vocab_size(self) -> int:
        """Number of pieces; ids are below it."""
        return int(self._processor.GetPieceSize())

    @property
    def pad_id(self) -> int:
        """Id of the padding piece, -1 where the model has none."""
        return int(self._processor.pad_id())

    @property
    def unk_id(self) -> int:
        """Id of the unknown piece; every model has one."""
        return int(self._processor.unk_id())

    @property
    def bos_id(self) -> int:
        """Id of the begin-of-segment piece, -1 where the model has none."""
        return int(self._processor.bos_id())

    @property
    def eos_id(self) -> int:
        """Id of the end-of-segment piece; a model without one is refused."""
        return int(self._processor.eos_id())

    @property
    def start_id(self) -> int:
        """Id a decoder starts from: begin of segment, or its end where the model has no begin."""
        return self.bos_id if self.bos_id >= 0 else self.eos_id

    @property
    def sha256(self) -> str:
        """Hash of the model's bytes, in hexadecimal."""
        return hashlib.sha256(self.model_bytes).hexdigest()

    @property
    def scored_pieces(self) -> list[tuple[str, float]]:
        """Every piece with its score, in the order of their ids."""
        scores: list[float] = self._processor.GetScore(list(range(self.vocab_size)))
        return list(zip(self._pieces, scores, strict=True))

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """Ids of each line, without begin and end of segment; a blank line has none."""
        ids: list[list[int]] = self._processor.Encode(
            _utf8(lines), return_type=int, num_threads=_threads(lines)
        )
        return ids

    def encode_pieces(self, lines: Sequence[str]) -> list[list[str]]:
        """Pieces of each line; a character that the model does not know stands as it is."""
        encoded: list[list[bytes]] = self._processor.Encode(
            _utf8(lines), return_type=bytes, num_threads=_threads(lines)
        )
        return [[piece.decode("utf-8", "replace") for piece in pieces] for pieces in encoded]

    def sample_pieces(
        self, line: str, *, seed: int, nbest_size: int = -1, alpha: float = 0.1
    ) -> list[str]:
        """One random segmentation of a line: always the same for the same seed.

        Args:
            line: the text.
            seed: any whole number.
            nbest_size: draw among this many best segmentations, at most 512; -1 for all.
            alpha: unigram: exponent of the segmentations' probabilities, 0 makes them equal;
                bpe: probability that a merge is left out.

        Raises:
            ModelError: the model is neither unigram nor bpe.
        """
        # SentencePiece's generator is its own and global, so it is seeded for each line.
        sentencepiece.SetRandomGeneratorSeed(seed % (2**32 - 1))
        try:
            pieces: list[bytes] = self._processor.Encode(
                _utf8([line])[0], return_type=bytes, enable_sampling=True,
                nbest_size=nbest_size, alpha=alpha,
            )  # fmt: skip
        except RuntimeError as error:
            reason = reason_of(error) or str(error)
            raise ModelError(f"the tokenizer cannot sample: {reason}") from error
        return [piece.decode("utf-8", "replace") for piece in pieces]

    def piece_ids(self, pieces: Sequence[str]) -> list[int]:
        """Id of each piece; the unknown id for what is no piece."""
        return list(self._processor.PieceToId(list(pieces)))

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Text of each sequence of ids, never with a line feed; special pieces give nothing."""
        return self._decoded(list(ids))

    def decode_pieces(self, pieces: Sequence[Sequence[str]]) -> list[str]:
        """Text of each sequence of pieces, never with a line feed.

        SentencePiece lets the blank sign of a piece that the model does not know stand; here it
        is a blank like any other, so that every text comes back whatever the model knows.
        """
        texts = self._decoded([_utf8(sequence) for sequence in pieces])
        return [text.removeprefix("▁").replace("▁", " ") for text in texts]

    def _decoded(self, sequences: list[Any]) -> list[str]:
        if not sequences:  # SentencePiece would take it for one empty sequence
            return []
        texts: list[bytes] = self._processor.Decode(
            sequences, return_type=bytes, num_threads=_threads(sequences)
        )
        # Byte pieces can spell a line feed, or bytes that are no UTF-8.
        return [text.decode("utf-8", "replace").replace("\n", " ") for text in texts]


def _utf8(texts: Iterable[str]) -> list[bytes]:
    """Bytes, since SentencePiece refuses a str with half a surrogate pair."""
    return [text.encode("utf-8", "replace") for text in texts]


def _threads(batch: Sequence[object]) -> int:
    return max(1, min(len(batch) // _LINES_PER_THREAD, os.cpu_count() or 1, 16))
