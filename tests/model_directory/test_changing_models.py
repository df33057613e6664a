"""A model that is read while it is replaced is always one of the saved models, complete."""

import os
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import RunTfm
from tests.model_directory.damage import copied, same
from tfm_cli.config.settings import ModelConfig, RunConfig, TokenizerConfig
from tfm_cli.model_directory.config_file import save_config
from tfm_cli.model_directory.weights import (
    WeightsFacts,
    build_transformer,
    load_model,
    save_weights,
    weights_facts,
)
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.training import train_tokenizer

SHAPE = ModelConfig(encoder_layers=1, decoder_layers=1, width=16, heads=2, feed_forward_width=16)


class Writer:
    """Saves two models alternately until it is stopped."""

    def __init__(self, directory: Path, *, most: int) -> None:
        settings = TokenizerConfig(vocab_size=30, model_type="word", byte_fallback=False)
        model_bytes = train_tokenizer(["a b c d e"], settings, seed=1, soft_limit=True)
        self.tokenizers = TokenizerPair.joint(Tokenizer(model_bytes))
        self.directory, self.most = directory, most
        self.weights: list[dict[str, Tensor]] = []
        for seed in range(2):
            torch.manual_seed(seed)
            built = build_transformer(SHAPE, self.tokenizers.vocab_sizes)
            self.weights.append(dict(built.state_dict()))
        self.saved = 0
        self.stop = threading.Event()
        save_config(directory, RunConfig(model=SHAPE), self.tokenizers)
        self.save()

    def save(self) -> None:
        """Save the next model, with its number as the update."""
        which = self.weights[self.saved % 2]
        facts = WeightsFacts(self.saved, {})
        save_weights(self.directory, which, self.tokenizers, SHAPE, facts)
        save_config(self.directory, RunConfig(model=SHAPE), self.tokenizers)
        self.saved += 1

    def run(self) -> None:
        """Save until stopped."""
        while not self.stop.is_set() and self.saved < self.most:
            self.save()


@pytest.mark.parametrize("most", [12, pytest.param(200, marks=pytest.mark.torture)])
def test_r45_reader_always_gets_a_complete_model(most: int, tmp_path: Path) -> None:
    writer = Writer(tmp_path, most=most)
    thread = threading.Thread(target=writer.run)
    thread.start()
    result = set()
    try:
        while thread.is_alive():
            facts = weights_facts(tmp_path)
            assert facts is not None
            loaded = load_model(tmp_path, torch.device("cpu")).transformer.state_dict()
            which = [same(loaded, each) for each in writer.weights]
            assert sum(which) == 1
            result.add(which.index(True))
    finally:
        writer.stop.set()
        thread.join()
    assert writer.saved == most
    assert result <= {0, 1}


@pytest.mark.slow
def test_r45_open_file_keeps_its_content(tmp_path: Path) -> None:
    """A new file replaces the old one, which readers keep open."""
    writer = Writer(tmp_path, most=2)
    path = tmp_path / "model.safetensors"
    with path.open("rb") as stream:
        before, content = os.fstat(stream.fileno()).st_ino, path.read_bytes()
        writer.save()

        assert stream.read() == content
        assert path.stat().st_ino != before
        assert path.read_bytes() != content


@pytest.mark.slow
def test_r45_translations_continue_while_the_model_is_replaced(
    tiny_model: Path, tmp_path: Path, run_tfm: RunTfm
) -> None:
    model = copied(tiny_model, tmp_path / "model")
    whole = {name: (model / name).read_bytes() for name in ("config.json", "model.safetensors")}
    stop = threading.Event()

    def save() -> None:
        from tfm_cli.files.atomic import atomic_file

        while not stop.is_set():
            for name, content in whole.items():
                with atomic_file(model / name) as stream:
                    stream.write(content)

    thread = threading.Thread(target=save)
    thread.start()
    try:
        for _ in range(20):
            result = run_tfm(["translate", "-m", str(model), "--device", "cpu"], "one two\nsix\n")
            assert (result.code, result.out) == (0, "eins zwei\nsechs\n"), result.err
    finally:
        stop.set()
        thread.join()
