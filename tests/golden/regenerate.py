"""Write the golden files and docs/reference/ anew: `make golden`, then read `git diff`.

A golden file changes only when what it records was meant to change.
"""

import contextlib
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - the path comes first

from tests.conftest import TINY_SHAPE, invoke, write_corpus  # noqa: E402
from tests.runs import metrics  # noqa: E402
from tfm_cli.config.settings import RunConfig  # noqa: E402
from tfm_cli.model_directory.config_file import save_config  # noqa: E402
from tfm_cli.tokenizer.pair import TokenizerPair  # noqa: E402
from tfm_cli.tokenizer.tokenizer import Tokenizer  # noqa: E402
from tfm_cli.tokenizer.vocabulary import Vocabulary  # noqa: E402

HERE = Path(__file__).parent
LOSSES = HERE / "losses"
# Frozen models: every later version must read them and use them alike.
MODELS = {
    # Of format 1; it cannot be made again.
    "model_v1": ("config.json", "tokenizer.model", "model.safetensors"),
    # A tokenizer for each language over one vocabulary, and all else that format 2 brought.
    "model_v2": ("config.json", "source.model", "target.model", "vocab.json", "model.safetensors"),
}
LOSS_UPDATES = 40
# The paper's layers, and with all that can be chosen otherwise; dropout is on in both.
LOSS_RUNS: dict[str, list[str]] = {
    "paper": [],
    "variants": [
        "--set", "model.norm=pre", "--set", "model.positions=rotary",
        "--set", "model.activation=swiglu", "--set", "model.tied_embeddings=0",
        "--set", "training.weight_decay=0.1", "--update-freq", "2", "--max-tokens", "128",
    ],
}  # fmt: skip


def losses(name: str, directory: Path) -> list[tuple[int, float, float]]:
    """Update, loss and gradient norm of the first updates of a run: fp32, seed 1, one thread."""
    torch.set_num_threads(1)
    corpus = write_corpus(directory)
    result = invoke(
        ["train", "-s", corpus.path("train.en"), "-t", corpus.path("train.de"), *TINY_SHAPE,
         "--output", str(directory / name), "--max-updates", str(LOSS_UPDATES),
         "--max-tokens", "256", "--lr", "5e-3", "--lr-warmup", "10", "--disp-freq", "1",
         "--seed", "1", "--device", "cpu", "--precision", "fp32", "--cpu-threads", "1",
         *LOSS_RUNS[name]]
    )  # fmt: skip
    assert result.code == 0, result.err
    return [
        (line["update"], line["loss"], line["gradient_norm"]) for line in metrics(directory / name)
    ]


def read_losses(name: str) -> list[tuple[int, float, float]]:
    """What `write_losses` wrote."""
    rows = (LOSSES / f"{name}.txt").read_text(encoding="utf-8").split("\n")[1:-1]
    return [(int(row.split()[0]), *map(float, row.split()[1:])) for row in rows]  # type: ignore[misc]


def write_losses() -> None:
    """Train the runs and note their losses."""
    LOSSES.mkdir(exist_ok=True)
    for name in LOSS_RUNS:
        with tempfile.TemporaryDirectory() as directory:
            rows = losses(name, Path(directory))
        lines = ["update loss gradient_norm"]
        lines += [f"{update} {loss:.6f} {norm:.6f}" for update, loss, norm in rows]
        text = "\n".join(lines) + "\n"
        (LOSSES / f"{name}.txt").write_text(text, encoding="utf-8", newline="\n")


def run(command: str, stdin: str = "") -> str:
    """What a `tfm` command that must succeed writes to standard output."""
    result = invoke(command.split(), stdin)
    assert result.code == 0, result.err
    return result.out


def freeze_model(name: str = "model_v2") -> None:
    """Train the model of this format and note what it says, unless that was done before."""
    if (HERE / name).exists():
        return
    torch.set_num_threads(1)
    # Relative names, since the settings are kept with the model.
    with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
        corpus = write_corpus(Path())
        for side in ("en", "de"):
            # Without SentencePiece's table of normalization the file is small.
            run(
                f"tokenize train --input train.{side} --model-prefix {side} "
                "--vocab-size 40 --model-type word --no-byte-fallback "
                "--normalization-rule-name identity --no-hard-vocab-limit"
            )
        source, target = (Tokenizer.load(Path(f"{side}.model")) for side in ("en", "de"))
        pieces = sorted({*source.pieces[4:], *target.pieces[4:]})
        vocabulary = Vocabulary(("</s>", "<unk>", *pieces, ">>deu<<", "<pad>"))
        pair = TokenizerPair(
            Tokenizer(source.model_bytes, vocabulary), Tokenizer(target.model_bytes, vocabulary)
        )
        Path("tokenizers").mkdir()
        save_config(Path("tokenizers"), RunConfig(), pair)
        run(
            "train -s train.en -t train.de -vs valid.en -vt valid.de --output model "
            f"{' '.join(TINY_SHAPE[4:])} --tokenizer tokenizers "
            "--set model.width=16 --set model.output_bias=true --set model.activation=swish "
            "--set model.positions=sinusoidal_marian --max-updates 800 "
            "--max-tokens 512 --lr 8e-3 --lr-warmup 50 --valid-freq 200 --dropout 0.0 "
            "--device cpu --set training.ema_decay=0.98"
        )
        (HERE / name).mkdir()
        for file in MODELS[name]:
            shutil.copy(Path("model", file), HERE / name / file)
        text = "".join(f"{line}\n" for line in [*corpus.lines("test.en"), "", "ten one", "five"])
    (HERE / name / "source.txt").write_text(text, encoding="utf-8", newline="\n")
    found = run(f"translate --model {HERE / name} --device cpu --n-best 2", text)
    (HERE / name / "expected.txt").write_text(found, encoding="utf-8", newline="\n")


def main() -> None:
    """Write all golden files."""
    from tests.golden import reference

    write_losses()
    reference.write_pages()
    freeze_model()


if __name__ == "__main__":
    main()
