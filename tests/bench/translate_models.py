"""The models that `translate.py` translates with; a job in JSON on standard input.

It is a process of its own: a process that holds weights hands the peak of its memory on to all
that it starts.
"""

import dataclasses
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch

from tests.bench.translate_works import SOURCE_PIECES
from tfm_cli.config.settings import ModelConfig, RunConfig, TokenizerConfig
from tfm_cli.corpus.sources import sample_path
from tfm_cli.files.atomic import atomic_directory
from tfm_cli.interop.ctranslate2 import write_ctranslate2
from tfm_cli.interop.hugging_face.writing import write_hugging_face
from tfm_cli.model.layers import DecoderLayer
from tfm_cli.model_directory.config_file import save_config
from tfm_cli.model_directory.weights import (
    TrainedModel,
    WeightsFacts,
    build_transformer,
    load_model,
    save_weights,
)
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.training import train_tokenizer

NUM_LINES = 4096
# Added to the logit of </s>: no translation ends before its limit.
NEVER = -1e4

SHAPES = {
    "base": ModelConfig(output_bias=True),
    "small": ModelConfig(
        encoder_layers=3, decoder_layers=3, width=256, heads=4, feed_forward_width=1024,
        output_bias=True,
    ),
    "tiny": ModelConfig(
        encoder_layers=4, decoder_layers=4, width=128, heads=4, feed_forward_width=256,
        output_bias=True,
    ),
}  # fmt: skip
VOCAB_SIZES = {"base": 32000, "small": 8000, "tiny": 4000}


def word_tokenizer(vocab_size: int) -> Tokenizer:
    """A tokenizer of made-up words, a piece each."""
    words = [f"w{number}" for number in range(vocab_size - 4)]  # and four special pieces
    lines = [" ".join(words[start : start + 100]) for start in range(0, len(words), 100)]
    config = TokenizerConfig(vocab_size=vocab_size, model_type="word", byte_fallback=False)
    return Tokenizer(train_tokenizer(lines, config, seed=1))


def word_lines(count: int, vocab_size: int) -> list[str]:
    """Lines of `SOURCE_PIECES` words that this tokenizer knows."""
    chance = random.Random(1)
    numbers = range(vocab_size - 4)
    return [
        " ".join(f"w{n}" for n in chance.choices(numbers, k=SOURCE_PIECES)) for _ in range(count)
    ]


@torch.no_grad()
def random_model(config: ModelConfig, tokenizer: Tokenizer) -> TrainedModel:
    """Weights nobody trained, whose translations never end and do not repeat one piece."""
    torch.manual_seed(1)
    transformer = build_transformer(config, (tokenizer.vocab_size, tokenizer.vocab_size)).eval()
    assert transformer.output_bias is not None
    transformer.output_bias[tokenizer.eos_id] = NEVER
    # With gains of either sign, a piece whose embedding is tied to the output does not call for
    # itself again.
    gains = cast(DecoderLayer, transformer.decoder_layers[-1]).feed_forward_norm.norm.weight
    gains.mul_(torch.randn_like(gains).sign())
    run = dataclasses.replace(RunConfig(), model=config)
    return TrainedModel(run, TokenizerPair.joint(tokenizer), transformer)


def save(directory: Path, model: TrainedModel) -> None:
    """Write a model into an empty directory."""
    save_config(directory, model.config, model.tokenizers)
    weights = model.transformer.state_dict()
    facts = WeightsFacts(0, {})
    save_weights(directory, weights, model.tokenizers, model.config.model, facts)


def trained_sample(directory: Path, updates: int) -> TrainedModel:
    """What has learned the sample corpus for so many updates."""
    command = [sys.executable, "-m", "tfm_cli", "train", "--output", str(directory), "--quiet"]
    command += ["--max-updates", str(updates), "--valid-freq", str(updates)]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return load_model(directory, torch.device("cpu"))


def export(model: TrainedModel, name: str, directory: Path) -> None:
    """Write a model into an empty directory: `hf`, `ctranslate2-fp32` or `ctranslate2-int8`."""
    if name == "hf":
        write_hugging_face(directory, model)
    else:
        precision = name.removeprefix("ctranslate2-")
        write_ctranslate2(directory, model, quantization=None if precision == "fp32" else precision)


def make(shape: str, folder: Path, model: Path, *, exports: Sequence[str], updates: int) -> None:
    """Fill a folder with `source.txt` and exports; what was made before stays.

    Args:
        shape: one of `SHAPES`, or `sample`, or `model` for one that is there.
        folder: what is filled.
        model: the model directory, which is made but for `model`.
        exports: see `export`.
        updates: how long `sample` learns.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    if shape == "sample":
        lines = Path(sample_path("test.en")).read_text(encoding="utf-8").split("\n")[:-1]
    elif shape in SHAPES:
        lines = word_lines(NUM_LINES, VOCAB_SIZES[shape])
    if lines:
        text = "".join(f"{line}\n" for line in lines)
        (folder / "source.txt").write_text(text, encoding="utf-8", newline="\n")
    if not model.exists():
        with atomic_directory(model) as aside:
            if shape == "sample":
                save(aside, trained_sample(folder / "training", updates))
            else:
                save(aside, random_model(SHAPES[shape], word_tokenizer(VOCAB_SIZES[shape])))
    # A model that is the user's may have changed since.
    missing = [name for name in exports if shape == "model" or not (folder / name).exists()]
    if missing:
        loaded = load_model(model, torch.device("cpu"))
        for name in missing:
            # The whole folder is the benchmark's own.
            with atomic_directory(folder / name, may_replace=Path.is_dir) as aside:
                export(loaded, name, aside)


def main() -> None:
    """Make what the job asks for."""
    job = json.load(sys.stdin)
    folder, model = Path(job["folder"]), Path(job["model"])
    make(job["shape"], folder, model, exports=job["exports"], updates=job["updates"])
    print("{}")


if __name__ == "__main__":
    main()
