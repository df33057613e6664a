"""The tokenizer: a SentencePiece model that encodes and decodes lines."""

import functools
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import sentencepiece

from tfm_cli.errors import ModelError
from tfm_cli.text.language_tags import LANGUAGE_TAG, leading_tag
from tfm_cli.tokenizer.model_file import (
    SPACE_SYMBOL,
    algorithm,
    check_model,
    read_model_file,
    reason_of,
    user_defined_pieces,
)
from tfm_cli.tokenizer.normalization import SILENT, changes_characters
from tfm_cli.tokenizer.vocabulary import Vocabulary

_LINES_PER_THREAD = 32  # below this, starting a thread costs more than it saves

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # SentencePiece's name of a byte's piece


class Tokenizer:
    """A SentencePiece model that converts between lines and ids or pieces.

    A language tag at the start of a line, such as `>>deu<<`, is always one piece, known or not. In
    a model without a vocabulary and without a piece such as `▁>>deu<<`, tags are ordinary text.

    Args:
        model_bytes: a serialized SentencePiece model.
        vocabulary: the order of the pieces and the special pieces; None for SentencePiece's own.
        name: name of the tokenizer in messages.

    Raises:
        ModelError: the bytes are not a SentencePiece model as SentencePiece itself writes it, or it
            has no end-of-segment piece.
        ResourceError: crafted models can crash the installed version of SentencePiece.
    """

    def __init__(
        self, model_bytes: bytes, vocabulary: Vocabulary | None = None, *, name: str = "tokenizer"
    ) -> None:
        check_model(model_bytes, name=name)
        sentencepiece.SetMinLogLevel(SILENT)
        self.model_bytes = model_bytes
        self.vocabulary = vocabulary
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model_bytes)
            pieces: list[str] = self._processor.IdToPiece(list(range(len(self._processor))))
        except (RuntimeError, ValueError) as error:
            reason = "" if isinstance(error, UnicodeDecodeError) else reason_of(error)
            suffix = f": {reason}" if reason else ""
            raise ModelError(f"{name}: is not a SentencePiece model{suffix}") from error
        self.pieces = tuple(pieces) if vocabulary is None else vocabulary.pieces
        self._tag_pieces = _tag_pieces(self.pieces, None if vocabulary else model_bytes)
        self._cuts_tags = vocabulary is not None or any(
            piece.startswith(SPACE_SYMBOL) for piece in self._tag_pieces.values()
        )
        if self.eos_id < 0:
            hint = "train the model without `eos_id=-1`"
            raise ModelError(f"{name}: has no `</s>`, expected a piece that ends a line", hint=hint)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Load a tokenizer from a `.model` file.

        Raises:
            ModelError: the file is missing, unreadable, over 64 MiB, or not a SentencePiece model.
        """
        return cls(read_model_file(path), name=str(path))

    @property
    def vocab_size(self) -> int:
        """Return the size of the vocabulary; every id is smaller."""
        return len(self.pieces)

    @property
    def unk_id(self) -> int:
        """Return the id of the unknown token."""
        if self.vocabulary is not None:
            return self.vocabulary.ids[self.vocabulary.unk]
        return int(self._processor.unk_id())

    @property
    def eos_id(self) -> int:
        """Return the id of the end-of-segment token."""
        if self.vocabulary is not None:
            return self.vocabulary.ids[self.vocabulary.eos]
        return int(self._processor.eos_id())

    @property
    def start_id(self) -> int:
        """Return the id of the decoder's first input.

        Without a vocabulary it is the begin-of-segment token, or the end if the model has none.
        """
        if self.vocabulary is not None:
            return self.vocabulary.ids[self.vocabulary.start]
        bos_id = int(self._processor.bos_id())
        return bos_id if bos_id >= 0 else self.eos_id

    @property
    def banned_ids(self) -> tuple[int, ...]:
        """Return the ids that are never generated; by default padding, unknown and start."""
        if self.vocabulary is not None:
            return tuple(sorted(self.vocabulary.ids[piece] for piece in self.vocabulary.banned))
        special = {int(self._processor.pad_id()), self.unk_id, self.start_id}
        return tuple(sorted(special - {-1, self.eos_id}))

    @property
    def byte_values(self) -> dict[int, int]:
        """Return the byte, 0 to 255, of each byte token by its id; empty without byte fallback."""
        spelled = {i: piece for i, piece in enumerate(self.pieces) if _BYTE.fullmatch(piece)}
        ids = list(spelled)
        if not ids:
            return {}
        own_ids = ids if self.vocabulary is None else self._processor.PieceToId([*spelled.values()])
        are_bytes = self._processor.IsByte(own_ids)
        return {
            i: int(spelled[i][3:5], 16)
            for i, is_byte in zip(ids, are_bytes, strict=True)
            if is_byte
        }

    @property
    def language_tags(self) -> tuple[str, ...]:
        """Return the language tags of a multilingual model, such as `>>deu<<`; usually none."""
        return tuple(self._tag_pieces)

    @property
    def reads_tags_as_text(self) -> bool:
        """Return True if language tags are split like any other text."""
        return not self._cuts_tags

    @property
    def marian_pieces(self) -> tuple[str, ...]:
        """Return the pieces as Marian's tokenizers spell them: a language tag without a space."""
        tags = {piece: tag for tag, piece in self._tag_pieces.items()}
        return tuple(tags.get(piece, piece) for piece in self.pieces) if tags else self.pieces

    @property
    def algorithm(self) -> str:
        """Return the algorithm that cuts text into pieces: `unigram`, `bpe`, `word` or `char`."""
        return algorithm(self.model_bytes)

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the model's bytes in hexadecimal."""
        return hashlib.sha256(self.model_bytes).hexdigest()

    @property
    def scored_pieces(self) -> list[tuple[str, float]]:
        """Return every piece of the SentencePiece model with its score, in its own order."""
        ids = list(range(len(self._processor)))
        pieces: list[str] = self._processor.IdToPiece(ids)
        scores: list[float] = self._processor.GetScore(ids)
        return list(zip(pieces, scores, strict=True))

    def encode(self, lines: Sequence[str], *, threads: int = 0) -> list[list[int]]:
        """Return the ids of each line, without begin and end of segment; none for a blank line.

        Args:
            lines: text without line feeds.
            threads: number of threads; 0 chooses by the number of lines.
        """
        if self.vocabulary is not None:
            return [self.piece_ids(pieces) for pieces in self.encode_pieces(lines, threads=threads)]
        threads = threads or _threads(lines)
        if self._cuts_tags:
            tags, texts = self._tags(lines)
            if any(tags):
                rows = self._sentencepiece_ids(texts, threads)
                heads = (self.piece_ids([tag]) if tag else [] for tag in tags)
                return [head + row for head, row in zip(heads, rows, strict=True)]
        return self._sentencepiece_ids(lines, threads)

    def _sentencepiece_ids(self, lines: Sequence[str], threads: int) -> list[list[int]]:
        ids: list[list[int]]
        try:
            ids = self._processor.Encode(list(lines), return_type=int, num_threads=threads)
        except TypeError:  # a lone surrogate, which is rare; encoding to bytes costs time
            ids = self._processor.Encode(_utf8(lines), return_type=int, num_threads=threads)
        return ids

    def encode_pieces(self, lines: Sequence[str], *, threads: int = 0) -> list[list[str]]:
        """Return the pieces of each line; characters unknown to the model are kept as they are."""
        tags, texts = self._tags(lines)
        encoded: list[list[bytes]] = self._processor.Encode(
            _utf8(texts), return_type=bytes, num_threads=threads or _threads(texts)
        )
        return [
            self._head(tag) + [piece.decode("utf-8", "replace") for piece in pieces]
            for tag, pieces in zip(tags, encoded, strict=True)
        ]

    def encode_spans(self, lines: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Return the span of each token of `encode` in its line: begin and end, in characters.

        A span may include the space before a word. If several tokens spell one character, the last
        one spans the character, and the spans of the others are empty, at its beginning.
        """
        tags, texts = self._tags(lines)
        mapped = self._processor.Encode(
            _utf8(texts), return_type="offset_mapping", return_bytes=False,
            num_threads=_threads(texts),
        )  # fmt: skip
        spans = []
        for tag, text in zip(tags, mapped, strict=True):
            head = [(0, len(tag))] if tag else []
            shift = len(tag)
            spans.append(head + [(begin + shift, end + shift) for begin, end in text["offsets"]])
        return spans

    @functools.cached_property
    def changes_characters(self) -> bool:
        """Return True if decoding may alter text even if every piece of it is known."""
        return changes_characters(self.model_bytes)

    def changed_lines(
        self, lines: Sequence[str], encoded: Sequence[Sequence[int]]
    ) -> list[tuple[int, str]]:
        """Return each line that decoding does not restore: its index and the decoded text.

        As in SentencePiece, runs of spaces count as one and spaces at the ends are ignored. A
        missing language tag is ignored too, since translations have none.
        """
        suspects: Sequence[int] = range(len(lines))
        if not self.changes_characters:  # decoding all lines takes a third as long as encoding
            unk_id = self.unk_id
            suspects = [i for i, line in enumerate(lines) if "▁" in line or unk_id in encoded[i]]
        restored = self.decode([encoded[index] for index in suspects])
        changed = []
        for index, text in zip(suspects, restored, strict=True):
            line = lines[index]
            if text != line and normalize_spaces(text) != normalize_spaces(line):
                before, after = map(normalize_spaces, self._tags([line, text])[1])
                if before not in (normalize_spaces(text), after):
                    changed.append((index, text))
        return changed

    def _tags(self, lines: Sequence[str]) -> tuple[list[str], Sequence[str]]:
        """Return the language tag of each line, "" without one, and the rest of each line."""
        if not self._cuts_tags:
            return [""] * len(lines), lines
        tags = [leading_tag(line) for line in lines]
        return tags, [line[len(tag) :] for line, tag in zip(lines, tags, strict=True)]

    def _head(self, tag: str) -> list[str]:
        """Return the piece of a language tag as a list; empty for ""."""
        return [self._tag_pieces.get(tag, tag)] if tag else []

    def language_tag(self, line: str) -> str:
        """Return the language tag at the start of a line, known or not.

        It is "" without a tag, and if the model treats tags as text.
        """
        tag = leading_tag(line)
        return tag if self._cuts_tags or tag in self._tag_pieces else ""

    def tag_length(self, line: str) -> int:
        """Return the number of tokens of the language tag at the start of a line; 0 without one.

        It is 1, unless SentencePiece splits the tag and puts a space before it.
        """
        tag = self.language_tag(line)
        if not tag or self._cuts_tags:
            return 1 if tag else 0
        return self.encode_pieces([line])[0].index(tag) + 1

    def nbest_pieces(self, line: str, count: int) -> list[list[str]]:
        """Return the pieces of the best segmentations of a line by a unigram model, best first.

        Args:
            line: the text.
            count: the number of segmentations, at most 512, if there are as many.
        """
        tags, texts = self._tags([line])
        rows: list[list[bytes]] = self._processor.NBestEncode(
            _utf8(texts)[0], nbest_size=count, return_type=bytes
        )
        return [
            self._head(tags[0]) + [piece.decode("utf-8", "replace") for piece in row]
            for row in rows
        ]

    @property
    def unsampled_ids(self) -> frozenset[int]:
        """Return the ids that no other pieces spell: of special, user-defined and byte pieces."""
        special = {self.eos_id, self.unk_id, self.start_id, *self.banned_ids, *self.byte_values}
        user_defined = {*user_defined_pieces(self.model_bytes), *self.language_tags}
        if self.vocabulary is None:
            ids = list(range(len(self._processor)))
            special |= {i for i, is_control in zip(ids, self._processor.IsControl(ids), strict=True)
                        if is_control}  # fmt: skip
        return frozenset(special | {i for i, p in enumerate(self.pieces) if p in user_defined})

    def piece_ids(self, pieces: Sequence[str]) -> list[int]:
        """Return the id of each piece or language tag; the unknown id for any other string."""
        if self._tag_pieces:
            pieces = [self._tag_pieces.get(piece, piece) for piece in pieces]
        if self.vocabulary is not None:
            ids, unk_id = self.vocabulary.ids, self.unk_id
            return [ids.get(piece, unk_id) for piece in pieces]
        return list(self._processor.PieceToId(list(pieces)))

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Return the text of each sequence of ids, without line feeds and special tokens."""
        if self.vocabulary is not None:
            special = {self.eos_id, self.unk_id, self.start_id, *self.banned_ids}
            return self.decode_pieces(
                [[self.pieces[i] for i in sequence if i not in special] for sequence in ids]
            )
        return self._decoded(list(ids))

    def decode_spans(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """Return the span of each id in the text of `decode`: begin and end, in characters.

        See `encode_spans`. A special token has an empty span between its neighbors.
        """
        if self.vocabulary is None:
            mapped = self._processor.Decode(list(ids), return_type="offset_mapping")
            return list(mapped["offsets"])
        special = {self.eos_id, self.unk_id, self.start_id, *self.banned_ids}
        shown = [i not in special for i in ids]
        pieces = [self.pieces[i] for i, seen in zip(ids, shown, strict=True) if seen]
        texts = [piece.decode("utf-8") for piece in _utf8(pieces)]  # offsets in characters
        mapped = self._processor.Decode(texts, return_type="offset_mapping")
        shift = int(mapped["text"].startswith("▁"))  # `decode_pieces` removes it
        offsets = iter([(max(0, b - shift), max(0, e - shift)) for b, e in mapped["offsets"]])
        spans, at = [], 0
        for seen in shown:
            span = next(offsets) if seen else (at, at)
            spans.append(span)
            at = span[1]
        return spans

    def decode_pieces(self, pieces: Sequence[Sequence[str]]) -> list[str]:
        """Return the text of each sequence of pieces, without line feeds.

        SentencePiece leaves `▁` in a piece unknown to the model. Here it becomes a space, so that
        every text is restored.
        """
        texts = self._decoded([_utf8(sequence) for sequence in pieces])
        return [text.removeprefix("▁").replace("▁", " ") for text in texts]

    def _decoded(self, sequences: list[Any]) -> list[str]:
        if not sequences:  # SentencePiece decodes an empty list as one empty sequence
            return []
        texts: list[bytes] = self._processor.Decode(
            sequences, return_type=bytes, num_threads=_threads(sequences)
        )
        # Byte tokens can spell a line feed, or bytes that are not UTF-8.
        return [text.decode("utf-8", "replace").replace("\n", " ") for text in texts]


def normalize_spaces(text: str) -> str:
    """Return a text with single spaces instead of runs of spaces, and none at its ends."""
    return " ".join(filter(None, text.split(" ")))


def _tag_pieces(pieces: Sequence[str], model_bytes: bytes | None) -> dict[str, str]:
    """Return the piece of each language tag.

    Args:
        pieces: all pieces of the tokenizer.
        model_bytes: the SentencePiece model, in which tags are user-defined pieces; None if a
            vocabulary defines the pieces.
    """
    candidates = [
        piece for piece in pieces if LANGUAGE_TAG.fullmatch(piece.removeprefix(SPACE_SYMBOL))
    ]
    if model_bytes is None:
        return {piece: piece for piece in candidates if not piece.startswith(SPACE_SYMBOL)}
    user_defined = set(user_defined_pieces(model_bytes)) if candidates else set()
    # A piece with a space before the tag, as text has it, takes precedence over one without.
    candidates.sort(key=lambda piece: piece.startswith(SPACE_SYMBOL))
    tags = {
        piece.removeprefix(SPACE_SYMBOL): piece for piece in candidates if piece in user_defined
    }
    return dict(sorted(tags.items()))


def _utf8(texts: Iterable[str]) -> list[bytes]:
    """Return texts as bytes, since SentencePiece refuses a str with a lone surrogate."""
    return [text.encode("utf-8", "replace") for text in texts]


def _threads(batch: Sequence[object]) -> int:
    return max(1, min(len(batch) // _LINES_PER_THREAD, os.cpu_count() or 1, 16))
