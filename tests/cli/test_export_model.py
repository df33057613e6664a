from pathlib import Path

import pytest

from tests.conftest import RunTfm, TinyCorpus

pytestmark = pytest.mark.filterwarnings("ignore")  # of what is imported for the verification


def test_a_trained_model_leaves_for_ctranslate2_and_translates_the_same(
    tiny_model: Path, tiny_corpus: TinyCorpus, run_tfm: RunTfm, tmp_path: Path
) -> None:
    ctranslate2 = pytest.importorskip("ctranslate2", reason="pip install 'tfm-cli[ctranslate2]'")
    from tfm_cli.model_directory.config_file import load_config, load_tokenizers

    out = tmp_path / "out"
    text = tiny_corpus.lines("test.en")

    done = run_tfm(["export", str(tiny_model), "--to", "ctranslate2", "-o", str(out)])

    assert (done.code, done.out) == (0, "")
    assert done.err.startswith("verified with CTranslate2 ")
    tokenizers = load_tokenizers(tiny_model, load_config(tiny_model))
    actual = ctranslate2.Translator(str(out)).translate_batch(
        tokenizers.source.encode_pieces(text), beam_size=4
    )
    theirs = tokenizers.target.decode_pieces([result.hypotheses[0] for result in actual])
    ours = run_tfm(
        ["translate", "-m", str(tiny_model), "--early-stopping", "-b", "4", "--device", "cpu"],
        "".join(f"{line}\n" for line in text),
    )
    assert theirs == ours.out.split("\n")[:-1]


@pytest.mark.slow
def test_a_trained_model_leaves_for_hugging_face_and_translates_the_same(
    tiny_model: Path, tiny_corpus: TinyCorpus, run_tfm: RunTfm, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install 'tfm-cli[hf]'")
    out = tmp_path / "out"
    text = tiny_corpus.lines("test.en")

    done = run_tfm(["export", str(tiny_model), "--to", "hf", "-o", str(out)])

    assert (done.code, done.out) == (0, "")
    assert done.err.startswith("verified with transformers ")
    tokenizer = transformers.MarianTokenizer.from_pretrained(out)
    model = transformers.MarianMTModel.from_pretrained(out)
    result = model.generate(**tokenizer(text, return_tensors="pt", padding=True))
    theirs = tokenizer.batch_decode(result, skip_special_tokens=True)
    ours = run_tfm(
        ["translate", "-m", str(tiny_model), "--device", "cpu"],
        "".join(f"{line}\n" for line in text),
    )
    assert theirs == ours.out.split("\n")[:-1]


def test_quiet_says_nothing(tiny_model: Path, run_tfm: RunTfm, tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2", reason="pip install 'tfm-cli[ctranslate2]'")
    arguments = ["--to", "ctranslate2", "--quantization", "int8", "-q"]

    done = run_tfm(["export", str(tiny_model), *arguments, "-o", str(tmp_path / "out")])

    assert (done.code, done.out, done.err) == (0, "", "")
    assert (tmp_path / "out" / "model.bin").is_file()


def test_an_output_that_stands_is_refused_and_replaced_if_asked_for(
    tiny_model: Path, run_tfm: RunTfm, tmp_path: Path
) -> None:
    pytest.importorskip("ctranslate2", reason="pip install 'tfm-cli[ctranslate2]'")
    command = ["export", str(tiny_model), "--to", "ctranslate2", "-o", str(tmp_path / "out")]
    assert run_tfm(command).code == 0

    refused = run_tfm(command)

    assert refused.code == 2
    assert "out: holds an export\nhint: use `--overwrite` to replace it" in refused.err
    assert run_tfm([*command, "--overwrite"]).code == 0


def test_a_quantization_that_the_target_has_not_is_a_usage_error(
    tiny_model: Path, run_tfm: RunTfm, tmp_path: Path
) -> None:
    out = str(tmp_path / "out")

    done = run_tfm(["export", str(tiny_model), "--to", "hf", "--quantization", "int8", "-o", out])

    assert done.code == 2
    assert done.err == (
        "error: `--quantization` is for `--to ctranslate2` and `--to tfm`, got `--to hf`\n"
    )


def test_a_model_that_is_not_there_exits_4(run_tfm: RunTfm, tmp_path: Path) -> None:
    done = run_tfm(["export", str(tmp_path / "none"), "--to", "hf", "-o", str(tmp_path / "out")])

    assert done.code == 4
    assert "there is no such model directory" in done.err
    assert not (tmp_path / "out").exists()
