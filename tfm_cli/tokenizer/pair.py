"""The tokenizers of a model: one for both languages, or one each."""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple, Self

from tfm_cli.errors import ModelError
from tfm_cli.files.layout import (
    JOINT_FILE,
    SHARED_VOCABULARY_FILE,
    SOURCE_FILE,
    SOURCE_VOCABULARY_FILE,
    TARGET_FILE,
    TARGET_VOCABULARY_FILE,
    TOKENIZER_FILE_SETS,
)
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.vocabulary import Vocabulary


class TokenizerPair(NamedTuple):
    """The tokenizers of source and target; a joint tokenizer is the same object twice."""

    source: Tokenizer
    target: Tokenizer

    @classmethod
    def joint(cls, tokenizer: Tokenizer) -> Self:
        """Return a pair with one tokenizer for both sides."""
        return cls(tokenizer, tokenizer)

    @property
    def is_joint(self) -> bool:
        """Return True if both sides are one tokenizer with SentencePiece's own ids."""
        return self.source is self.target and self.source.vocabulary is None

    @property
    def shares_vocabulary(self) -> bool:
        """Return True if each id is the same piece on both sides, so embeddings may be shared."""
        return self.source.pieces == self.target.pieces

    @property
    def vocab_sizes(self) -> tuple[int, int]:
        """Return the sizes of the source and the target vocabulary."""
        return self.source.vocab_size, self.target.vocab_size

    @property
    def sha256(self) -> str:
        """Return a SHA-256 over all files; for a joint tokenizer, that of its file."""
        if self.is_joint:
            return self.source.sha256
        digest = hashlib.sha256()
        for name, sha256 in sorted(self.sha256_by_file().items()):
            digest.update(f"{name} {sha256}\n".encode())
        return digest.hexdigest()

    def sha256_by_file(self) -> dict[str, str]:
        """Return the SHA-256 of each file of `files`."""
        return {name: hashlib.sha256(data).hexdigest() for name, data in self.files().items()}

    def files(self) -> dict[str, bytes]:
        """Return the files of a model directory that hold the tokenizers: content by name."""
        if self.is_joint:
            return {JOINT_FILE: self.source.model_bytes}
        files = {SOURCE_FILE: self.source.model_bytes, TARGET_FILE: self.target.model_bytes}
        source, target = self.source.vocabulary, self.target.vocabulary
        assert (source is None) == (target is None)
        if source is not None and source == target:
            files[SHARED_VOCABULARY_FILE] = source.to_json()
        elif source is not None and target is not None:
            files[SOURCE_VOCABULARY_FILE] = source.to_json()
            files[TARGET_VOCABULARY_FILE] = target.to_json()
        return files

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], *, origin: str) -> Self:
        """Return the tokenizers that `files` serialized.

        Args:
            files: content by name.
            origin: name of their directory in messages.

        Raises:
            ModelError: the files do not belong together, or a file cannot be parsed.
        """
        if set(files) not in TOKENIZER_FILE_SETS:
            listed = ", ".join(f"`{name}`" for name in sorted(files))
            message = f"has tokenizer files that do not belong together: {listed}"
            raise ModelError(f"{origin}: {message}")
        if JOINT_FILE in files:
            return cls.joint(Tokenizer(files[JOINT_FILE], name=f"{origin}/{JOINT_FILE}"))
        vocabularies: list[Vocabulary | None] = [None, None]
        if SHARED_VOCABULARY_FILE in files:
            name = SHARED_VOCABULARY_FILE
            shared = Vocabulary.from_json(files[name], name=f"{origin}/{name}")
            vocabularies = [shared, shared]
        elif SOURCE_VOCABULARY_FILE in files:
            vocabularies = [
                Vocabulary.from_json(files[name], name=f"{origin}/{name}")
                for name in (SOURCE_VOCABULARY_FILE, TARGET_VOCABULARY_FILE)
            ]
        source, target = (
            Tokenizer(files[name], vocabulary, name=f"{origin}/{name}")
            for name, vocabulary in zip((SOURCE_FILE, TARGET_FILE), vocabularies, strict=True)
        )
        return cls(source, target)
