"""Hostile model directories are refused by name, within a second and 200 MB."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import RunTfm
from tests.model_directory.hostile_models import HOSTILE, made
from tfm_cli.config.settings import ModelConfig
from tfm_cli.errors import ModelError
from tfm_cli.model_directory.config_file import load_named_tokenizers
from tfm_cli.model_directory.weight_shapes import weight_shapes
from tfm_cli.model_directory.weights import build_transformer, load_model
from tfm_cli.training import checkpoint

# A second, and more on a machine that has much else to do.
MOST_SECONDS, MOST_BYTES = 3.0, 200 << 20
pytestmark = pytest.mark.timeout(60)  # a blocking read of a pipe would never end

# Loads each directory and prints the result, the time and the memory.
_PROGRAM = """
import json, resource, sys, time, torch
from pathlib import Path
from tfm_cli.errors import TfmError
from tfm_cli.model_directory.weights import load_model
golden, *hostile = map(Path, sys.argv[1:])
load_model(golden, torch.device("cpu"))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
for directory in hostile:
    began = time.process_time()
    try:
        load_model(directory, torch.device("cpu"))
        outcome = ""
    except TfmError as error:
        outcome = f"{error.exit_code} {error}"
    print(json.dumps([outcome, time.process_time() - began, peak() - before]))
"""


@pytest.mark.parametrize("name", HOSTILE)
def test_r39_r40_r42_hostile_model_is_refused_by_name(name: str, tmp_path: Path) -> None:
    directory = made(name, tmp_path / "model")

    with pytest.raises(ModelError) as caught:
        load_model(directory, torch.device("cpu"))

    assert HOSTILE[name].message in str(caught.value)
    assert HOSTILE[name].file in str(caught.value) or name == "config: huge vocabulary"
    assert not Path("made-by-a-pickle").exists()


@pytest.mark.slow
def test_r39_r40_hostile_models_take_less_than_a_second_and_200_mb(tmp_path: Path) -> None:
    names = list(HOSTILE)
    directories = [made(name, tmp_path / f"{n}") for n, name in enumerate(names)]
    golden = Path(__file__).parents[1] / "golden" / "model_v2"

    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, golden, *directories],
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(names)
    for name, (message, seconds, num_bytes) in zip(names, rows, strict=True):
        assert message.startswith("4 "), name
        assert seconds < MOST_SECONDS, name
        assert num_bytes < MOST_BYTES, name


@pytest.mark.parametrize("name", ["header: 100 MB header", "config: huge model", "config: NaN"])
def test_r39_r40_command_refuses_a_hostile_model_with_4(
    name: str, tmp_path: Path, run_tfm: RunTfm
) -> None:
    directory = made(name, tmp_path / "model")

    result = run_tfm(["translate", "--model", str(directory), "--device", "cpu"], "one\n")

    assert (result.code, result.out) == (4, "")
    assert result.err.startswith("error: ")
    assert HOSTILE[name].message in result.err


def test_r39_torn_weights_are_reported_before_torch_is_imported(tmp_path: Path) -> None:
    directory = made("header: 100 MB header", tmp_path / "model")
    program = (
        "import sys; from tfm_cli.cli import app\n"
        "try: app()\n"
        "except SystemExit as end: assert end.code == 4\n"
        "assert 'torch' not in sys.modules"
    )

    subprocess.run(
        [sys.executable, "-c", program, "translate", "--model", directory],
        input=b"", capture_output=True, check=True,
    )  # fmt: skip


@pytest.mark.parametrize("tied", range(4))
@pytest.mark.parametrize("layers", [(1, 1), (2, 3)])
def test_r40_size_of_a_model_is_known_before_it_is_built(
    tied: int, layers: tuple[int, int]
) -> None:
    config = ModelConfig(
        encoder_layers=layers[0], decoder_layers=layers[1], width=8, heads=2, norm="pre",
        feed_forward_width=6, tied_embeddings=tied, positions="learned", activation="swiglu",
        output_bias=True,
    )  # fmt: skip

    built = build_transformer(config, (11, 11)).state_dict()

    expected = {name: tuple(tensor.shape) for name, tensor in built.items()}
    assert weight_shapes(config, (11, 11)) == expected


def test_r42_link_to_a_regular_file_is_followed(tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "golden" / "model_v2"
    (tmp_path / "model").mkdir()
    for file in golden.iterdir():
        (tmp_path / "model" / file.name).symlink_to(file)

    assert load_model(tmp_path / "model", torch.device("cpu")).config is not None


def test_r42_checkpoint_with_a_pipe_or_a_device_is_skipped(
    tiny_model: Path, tmp_path: Path, log_messages: list[str]
) -> None:
    older, newer = sorted((tiny_model / "checkpoints").iterdir())[-2:]
    for path in (older, newer):
        (tmp_path / path.name).mkdir()
        for file in path.iterdir():
            (tmp_path / path.name / file.name).write_bytes(file.read_bytes())
    for name in ("manifest.json", "state.json", "model.safetensors"):
        path = tmp_path / newer.name / name
        whole = path.read_bytes()
        for make, reason in (
            (os.mkfifo, "is not a regular file"),
            (lambda p: p.symlink_to("/dev/zero"), "is not a regular file"),
            (lambda p: p.symlink_to("gone"), "No such file or directory"),
        ):
            path.unlink()
            make(path)

            result = checkpoint.newest(tmp_path)

            assert result is not None
            assert result.path.name == older.name
            assert log_messages.pop().startswith(
                f"{path}: is damaged or not a checkpoint: {reason}"
            )
        path.unlink()
        path.write_bytes(whole)


@pytest.mark.parametrize("kind", ["pipe", "device", "directory", "gone"])
def test_r42_irregular_tokenizer_and_shortlist_are_refused(
    kind: str, tmp_path: Path, tiny_model: Path, run_tfm: RunTfm
) -> None:
    place = tmp_path / "place"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "directory":
        place.mkdir()
    else:
        place.symlink_to("/dev/zero" if kind == "device" else "nothing")

    with pytest.raises(ModelError, match="place"):
        load_named_tokenizers(place)
    for arguments in (
        ["tokenize", "encode", "--model", str(place)],
        ["train", "--output", str(tmp_path / "model"), "--tokenizer", str(place)],
        ["translate", "--model", str(tiny_model), "--shortlist-file", str(place)],
    ):
        result = run_tfm(arguments, "one\n")
        assert (result.code, result.out) == (4, ""), arguments
        assert "place" in result.err
        assert result.err.startswith("error: "), result.err
