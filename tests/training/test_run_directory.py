import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tfm_cli.config.settings import DataConfig, RunConfig, TokenizerConfig, TrainingConfig
from tfm_cli.errors import ConfigError, ModelError, ResourceError
from tfm_cli.model_directory.config_file import save_config
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.training import train_tokenizer
from tfm_cli.training.run_directory import (
    begin,
    can_resume,
    check_inputs_not_overwritten,
    check_output,
    clear,
    marked,
)

TEXT = DataConfig(source=("train.en",), target=("train.de",))
CONFIG = RunConfig(data=TEXT, training=TrainingConfig(seed=3))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A directory with a run that made two checkpoints."""
    settings = TokenizerConfig(vocab_size=30, model_type="word", byte_fallback=False)
    tokenizer = Tokenizer(train_tokenizer(["a b"], settings, seed=1, soft_limit=True))
    directory = tmp_path / "model"
    save_config(directory, CONFIG, TokenizerPair.joint(tokenizer))
    for name in ("model.safetensors", "README.md", "metrics.jsonl"):
        (directory / name).touch()
    for name in ("update-00000005", "update-00000010", "best-on-schedule"):
        (directory / "checkpoints" / name).mkdir(parents=True)
    return directory


def everything(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["none", "none/deeper", "empty"])
def test_run_begins_where_there_is_nothing(name: str, overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    assert not can_resume(CONFIG, tmp_path / name, overwrite=overwrite)

    assert everything(tmp_path) == ["empty"]  # to ask makes nothing


def test_run_with_checkpoints_is_gone_on_with(output: Path) -> None:
    assert can_resume(CONFIG, output, overwrite=False)
    assert not can_resume(CONFIG, output, overwrite=True)


@pytest.mark.parametrize("name", ["model", "model/../model", "linked"])
def test_model_to_start_from_is_not_overwritten(name: str, output: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(output)
    config = RunConfig(training=TrainingConfig(seed=3, pretrained_model=str(tmp_path / name)))
    before = everything(tmp_path)

    with pytest.raises(ConfigError, match="is the pretrained model, which `--overwrite` would"):
        can_resume(config, output, overwrite=True)

    assert everything(tmp_path) == before
    assert not can_resume(config, tmp_path / "other", overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("files", [["README.md"], ["a", ".git", "c", "d"], ["model.safetensors"]])
def test_directory_with_other_files_is_refused(
    files: list[str], overwrite: bool, tmp_path: Path
) -> None:
    for name in files:
        (tmp_path / name).touch()

    with pytest.raises(ConfigError, match="is not empty and holds no model: `") as caught:
        can_resume(CONFIG, tmp_path, overwrite=overwrite)

    assert str(caught.value).endswith(" …" if len(files) > 3 else "`")
    assert everything(tmp_path) == sorted(files)


def test_model_of_another_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "marian"}', encoding="utf-8")

    with pytest.raises(ModelError, match=r"config\.json: is not a model config"):
        can_resume(CONFIG, tmp_path, overwrite=False)
    with pytest.raises(ConfigError, match=r"holds no model: `config\.json`"):
        can_resume(CONFIG, tmp_path, overwrite=True)


def test_run_that_was_killed_while_it_began_begins_again(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    for name in ("tokenizer.model", ".config.json.123.part", ".tokenizer.model.4.part"):
        (tmp_path / name).touch()

    assert not can_resume(CONFIG, tmp_path, overwrite=False)


def test_run_that_was_killed_before_a_checkpoint_starts_over_and_logs_it(
    output: Path, log_messages: list[str]
) -> None:
    for path in (output / "checkpoints").glob("update-*"):
        path.rmdir()

    assert not can_resume(CONFIG, output, overwrite=False)

    assert log_messages == [
        f"{output}: the run in it ended before its first checkpoint; starting over"
    ]


def test_model_without_checkpoints_is_not_thrown_away(output: Path) -> None:
    for path in (output / "checkpoints").iterdir():
        path.rmdir()
    (output / "checkpoints").rmdir()

    with pytest.raises(ConfigError, match="holds a trained model, but no `checkpoints`") as caught:
        can_resume(CONFIG, output, overwrite=False)

    assert f"--pretrained-model {output}" in str(caught.value.hint)
    assert not can_resume(CONFIG, output, overwrite=True)


def test_error_names_all_changed_settings(output: Path) -> None:
    other = RunConfig(
        training=TrainingConfig(seed=4, max_updates=7, learn_rate=0.5),
        data=DataConfig(source=("moved.en",), target=("moved.de",), max_length=9),
    )

    with pytest.raises(ConfigError) as caught:
        can_resume(other, output, overwrite=False)

    assert str(caught.value).split("\n  ") == [
        f"{output}: holds a run with other settings; 3 changes",
        "data.max_length: 256 → 9",
        "training.learn_rate: 0.0007 → 0.5",
        "training.seed: 3 → 4",
    ]
    assert "`--overwrite`" in str(caught.value.hint)
    assert not can_resume(other, output, overwrite=True)


def test_torn_config_is_refused(output: Path) -> None:
    (output / "config.json").write_bytes(b"{")

    with pytest.raises(ModelError, match=r"config\.json: is damaged"):
        can_resume(CONFIG, output, overwrite=False)


def test_place_that_cannot_be_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ResourceError, match="file: cannot be written: it is not a directory"):
        can_resume(CONFIG, tmp_path / "file", overwrite=True)
    with pytest.raises(ResourceError, match=r"cannot be written: `.*file` is not a directory"):
        can_resume(CONFIG, tmp_path / "file" / "model", overwrite=False)


def test_only_files_of_a_model_are_cleared(output: Path) -> None:
    (output / "notes.txt").touch()
    (output / "plots").mkdir()

    clear(output)

    assert everything(output) == ["notes.txt", "plots"]


def test_settings_are_cleared_last(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[str] = []
    unlink: Callable[..., None] = Path.unlink

    def watched(path: Path, missing_ok: bool = False) -> None:
        removed.append(path.name)
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", watched)
    clear(output)

    assert removed[-1] == "config.json"


def test_what_killed_runs_left_is_swept_out(output: Path) -> None:
    whole = everything(output)
    (output / ".model.safetensors.77.part").touch()
    for name in (".update-00000011.77.part", ".update-00000001.5.trash"):
        (output / "checkpoints" / name / "inside").mkdir(parents=True)

    begin(output)

    assert everything(output) == whole


def test_directory_is_made_with_its_parents(tmp_path: Path) -> None:
    begin(tmp_path / "deep" / "model")

    assert everything(tmp_path) == ["deep", "deep/model", "deep/model/checkpoints"]


def test_file_that_cannot_be_removed_is_an_error(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)

    with pytest.raises(ResourceError, match=r"model\.safetensors: cannot be changed: Permission"):
        clear(output)


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints/update-00000005/state.json"])
def test_standard_input_that_would_be_replaced_is_refused(
    name: str, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (output / "checkpoints/update-00000005/manifest.json").touch()
    (output / name).touch()
    (output / "notes").touch()
    config = RunConfig(data=DataConfig(pairs=("-",)))

    with (output / "notes").open() as notes:
        monkeypatch.setattr("sys.stdin", notes)
        check_inputs_not_overwritten(config, output, resume=True)
    with (output / name).open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        with pytest.raises(ConfigError, match="would replace or remove standard input, which is"):
            check_inputs_not_overwritten(config, output, resume=True)


def test_marker_is_removed_only_if_nothing_else_was_written(tmp_path: Path) -> None:
    def fail() -> None:
        assert (tmp_path / ".tfm-run.json").is_file()
        raise ValueError("nothing was made")

    def fail_later() -> None:
        (tmp_path / "corpus").mkdir()
        raise ValueError("something was made")

    with pytest.raises(ValueError, match="nothing"), marked(tmp_path, CONFIG.data):
        fail()
    assert everything(tmp_path) == []

    with pytest.raises(ValueError, match="something"), marked(tmp_path, CONFIG.data):
        fail_later()
    assert everything(tmp_path) == [".tfm-run.json", "corpus"]
    check_output(CONFIG, tmp_path)


def test_mark_that_cannot_be_removed_hides_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    def fail() -> None:
        monkeypatch.setattr(Path, "unlink", refuse)
        raise ValueError("the reason")

    with pytest.raises(ValueError, match="the reason"), marked(tmp_path, CONFIG.data):
        fail()


@pytest.mark.parametrize("name", [".notes.123.part", "notes"])
def test_tokenizer_of_somebody_is_not_taken_for_that_of_a_run(name: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"theirs")
    (tmp_path / name).touch()

    with pytest.raises(ConfigError, match="is not empty and holds no model: "):
        check_output(CONFIG, tmp_path)


def test_mark_of_a_run_does_not_cover_the_settings_of_another_program(tmp_path: Path) -> None:
    (tmp_path / ".tfm-run.json").write_text('{"tfm_version": "1"}', encoding="utf-8")
    check_output(CONFIG, tmp_path, overwrite=True)
    (tmp_path / "config.json").write_text('{"model_type": "marian"}', encoding="utf-8")

    with pytest.raises(ConfigError, match=r"holds no model: `config\.json`"):
        check_output(CONFIG, tmp_path, overwrite=True)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user for a moment")
@pytest.mark.parametrize("folder", ["", "checkpoints", "checkpoints/best-on-schedule", "corpus"])
def test_folder_that_cannot_be_looked_into_is_told(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # from here on, folders around it need no permission
    tmp_path.chmod(0o755)
    output = Path("model")
    (output / folder).mkdir(parents=True)
    (output / folder).chmod(0o333)
    if folder:
        output.chmod(0o777)
    os.seteuid(65534)
    try:
        with pytest.raises(ResourceError, match="cannot be read: Permission denied"):
            check_output(CONFIG, output)
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("is_model", [False, True])
def test_file_of_somebody_else_with_the_name_of_the_marker_is_refused_and_left(
    is_model: bool, output: Path, tmp_path: Path
) -> None:
    place = output if is_model else tmp_path / "new"
    place.mkdir(exist_ok=True)
    (place / ".tfm-run.json").write_bytes(b"theirs")

    for overwrite in (False, True):
        message = ".tfm-run.json: cannot be written: tfm is not known to have made it"
        with pytest.raises(ResourceError, match=message):
            can_resume(CONFIG, place, overwrite=overwrite)

    assert (place / ".tfm-run.json").read_bytes() == b"theirs"
