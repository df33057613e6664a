"""Lines that show whether a model computes the same elsewhere."""

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
# What shows that a tokenizer was not made for a language: pieces it does not know, or short ones.
_MOST_UNKNOWN = 0.02
_MOST_PIECES_PER_CHARACTER = 0.6
_LONGEST_DRAWN = 20  # pieces


def probe_lines(model: TrainedModel, probe_file: Path | None, *, seed: int) -> list[str]:
    """Lines to compare a model's doings on, none of them blank.

    Without a file they are sentences of the sample corpus if the model's pieces fit one of its
    languages, else made of pieces drawn from the source vocabulary. For a model that asks for
    language tags, a line without one gets one.

    Args:
        model: what is to be compared.
        probe_file: text in the source language, plain or compressed.
        seed: of what is drawn.

    Raises:
        DataError: the file cannot be read, or all its lines are blank.
    """
    tokenizer = model.tokenizers.source
    if probe_file is None:
        found = _sample(tokenizer) or _drawn(tokenizer, random.Random(seed))
    else:
        with open_lines(probe_file) as reader:
            found = held_in_memory((line for line in reader if line.strip()), reader.name)
        if not found:
            raise DataError(f"{probe_file}: has no line to verify the model with")
    tags = tokenizer.language_tags
    if not tags:
        return found
    return [
        line if line.startswith(tags) else f"{tags[index % len(tags)]} {line}"
        for index, line in enumerate(found)
    ]


def _sample(tokenizer: Tokenizer) -> list[str]:
    """Sentences of the sample corpus in the language that the pieces fit best; none if in none."""
    best: tuple[float, list[str]] = (_MOST_PIECES_PER_CHARACTER, [])
    for name in _SAMPLES:
        try:
            with open_lines(sample_path(name)) as reader:
                lines = list(islice((line for line in reader if line.strip()), NUM_LINES))
        except ResourceError:  # it was not installed
            continue
        ids = [index for row in tokenizer.encode(lines) for index in row]
        density = len(ids) / sum(map(len, lines))
        if ids.count(tokenizer.unk_id) <= _MOST_UNKNOWN * len(ids) and density < best[0]:
            best = density, lines
    return best[1]


def _drawn(tokenizer: Tokenizer, chance: random.Random) -> list[str]:
    special = {tokenizer.eos_id, tokenizer.unk_id, tokenizer.start_id, *tokenizer.banned_ids}
    special |= set(tokenizer.piece_ids(tokenizer.language_tags))
    # A vocabulary for both languages has pieces that the source's model would never cut.
    own = {piece for piece, _ in tokenizer.scored_pieces}
    usable = [i for i, piece in enumerate(tokenizer.pieces) if i not in special and piece in own]
    rows = [chance.choices(usable, k=chance.randint(1, _LONGEST_DRAWN)) for _ in range(NUM_LINES)]
    return [line for line in tokenizer.decode(rows) if line.strip()] or ["?"]
