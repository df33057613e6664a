"""The other programs that tests compare with, if they are installed."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.decoding.searching import beam_search
from tfm_cli.corpus.batch import pad_source
from tfm_cli.model_directory.weights import TrainedModel
from tfm_cli.tokenizer.tokenizer import Tokenizer

LIMIT = 40  # tokens of a translation
# Warnings of `transformers` do not concern us.
QUIET = pytest.mark.filterwarnings("ignore")


def hugging_face(directory: Path) -> tuple[Any, Any]:
    """Load `MarianMTModel` and `MarianTokenizer` from a directory."""
    transformers = pytest.importorskip("transformers", reason="pip install 'tfm-cli[hf]'")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    model, report = transformers.MarianMTModel.from_pretrained(directory, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval(), transformers.MarianTokenizer.from_pretrained(directory)


def ctranslate2(directory: Path, *, compute_type: str = "float32") -> Any:
    """Load CTranslate2's `Translator` from a directory."""
    module = pytest.importorskip("ctranslate2", reason="pip install 'tfm-cli[ctranslate2]'")
    module.set_log_level(logging.ERROR)
    return module.Translator(
        str(directory), device="cpu", intra_threads=1, compute_type=compute_type
    )


@torch.no_grad()
def translations(
    model: TrainedModel, lines: list[str], *, beam_size: int, renormalize: bool = False
) -> list[tuple[tuple[int, ...], float] | None]:
    """Return ids and score of each line's best hypothesis; None if the beam reached the limit."""
    source, target = model.tokenizers.source, model.tokenizers.target
    ids, keep = pad_source(source.encode(lines), source.eos_id)
    found = beam_search(
        model.transformer,
        ids,
        keep,
        limits=[LIMIT] * len(lines),
        start_id=target.start_id,
        eos_id=target.eos_id,
        banned_ids=target.banned_ids,
        beam_size=beam_size,
        early_stopping=True,
        renormalize=renormalize,
    )
    return [
        None
        if any(len(h.ids) >= LIMIT for h in hypotheses)
        else (hypotheses[0].ids, hypotheses[0].score)
        for hypotheses in found
    ]


def pieces(tokenizer: Tokenizer, rows: list[list[int]]) -> list[list[str]]:
    """Return the pieces of ids."""
    return [[tokenizer.pieces[index] for index in row] for row in rows]
