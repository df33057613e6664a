from types import SimpleNamespace
from typing import Any

import torch

from tests.translation.spelling_models import spelling_tokenizer, spelling_transformer
from tfm_cli.interop.verification.our_model import OurSide
from tfm_cli.tokenizer.pair import TokenizerPair


@torch.inference_mode()
def test_search_of_a_verification_is_free_to_write_bytes_that_are_no_text() -> None:
    """Other programs have no such constraint, and equal models have to find the same there."""
    tokenizer = spelling_tokenizer()
    model: Any = SimpleNamespace(
        transformer=spelling_transformer(tokenizer, 1), tokenizers=TokenizerPair.joint(tokenizer)
    )
    sources = [tuple(ids) for ids in tokenizer.encode(["one two", "three four five"])]

    found = OurSide(model, bans_before_softmax=False).search(sources, beam_size=1, limit=20)

    texts = tokenizer.decode([list(hypotheses[0].ids) for hypotheses in found])
    assert any("\ufffd" in text for text in texts)
