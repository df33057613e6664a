"""Text on which a model is compared with its counterpart in another program."""

import random
from itertools import islice
from pathlib import Path

from tfm_cli.corpus.sources import sample_path
from tfm_cli.errors import DataError, ResourceError
from tfm_cli.model_directory.weights import TrainedModel
from tfm_cli.text.reader import held_in_memory, open_lines
from tfm_cli.tokenizer.tokenizer import Tokenizer

NUM_LINES = 24
_SAMPLES = ("test.en", "test.fr")
# Above these limits, a tokenizer is considered unsuitable for a language.
_MAX_UNKNOWN = 0.02  # of the tokens
_MAX_TOKENS_PER_CHARACTER = 0.6
_MAX_RANDOM_LINE = 20  # tokens


def probe_lines(model: TrainedModel, probe_file: Path | None, *, seed: int) -> list[str]:
    """Return lines to compare a model on, none of them blank.

    Without a file, they are sentences of the sample corpus if the tokenizer suits one of its
    languages, otherwise random tokens of the source vocabulary. If the model has language tags, a
    line without one gets one.

    Args:
        model: the model to compare.
        probe_file: text in the source language, plain or compressed.
        seed: seed of the random tokens.

    Raises:
        DataError: the file cannot be read, or all its lines are blank.
    """
    tokenizer = model.tokenizers.source
    if probe_file is None:
        lines = _sample(tokenizer) or _random_lines(tokenizer, random.Random(seed))
    else:
        with open_lines(probe_file) as reader:
            lines = held_in_memory((line for line in reader if line.strip()), reader.name)
        if not lines:
            raise DataError(f"{probe_file}: has no line to verify the model with")
    tags = tokenizer.language_tags
    if not tags:
        return lines
    return [
        line if line.startswith(tags) else f"{tags[index % len(tags)]} {line}"
        for index, line in enumerate(lines)
    ]


def _sample(tokenizer: Tokenizer) -> list[str]:
    """Return sentences in the language that the tokenizer suits best; none if it suits none."""
    best: tuple[float, list[str]] = (_MAX_TOKENS_PER_CHARACTER, [])
    for name in _SAMPLES:
        try:
            with open_lines(sample_path(name)) as reader:
                lines = list(islice((line for line in reader if line.strip()), NUM_LINES))
        except ResourceError:  # the sample corpus is not installed
            continue
        ids = [index for row in tokenizer.encode(lines) for index in row]
        density = len(ids) / sum(map(len, lines))
        if ids.count(tokenizer.unk_id) <= _MAX_UNKNOWN * len(ids) and density < best[0]:
            best = density, lines
    return best[1]


def _random_lines(tokenizer: Tokenizer, rng: random.Random) -> list[str]:
    special = {tokenizer.eos_id, tokenizer.unk_id, tokenizer.start_id, *tokenizer.banned_ids}
    special |= set(tokenizer.piece_ids(tokenizer.language_tags))
    # A joint vocabulary has pieces that the SentencePiece model of the source never produces.
    own = {piece for piece, _ in tokenizer.scored_pieces}
    usable = [i for i, piece in enumerate(tokenizer.pieces) if i not in special and piece in own]
    rows = [rng.choices(usable, k=rng.randint(1, _MAX_RANDOM_LINE)) for _ in range(NUM_LINES)]
    return [line for line in tokenizer.decode(rows) if line.strip()] or ["?"]
