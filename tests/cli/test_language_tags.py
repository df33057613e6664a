"""Language tags of a model that `tfm train` made, from its text to the toolkits it leaves for."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import TINY_SHAPE, RunTfm, invoke
from tests.tiers import representative
from tfm_cli.model_directory.config_file import load_config, load_tokenizers
from tfm_cli.tokenizer.tokenizer import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # of what is imported for the verification

WORDS = {"one": ("un", "eins"), "two": ("deux", "zwei"), "three": ("trois", "drei")}
TAGS = (">>fra<<", ">>deu<<")

Train = Callable[..., list[str]]


def write(directory: Path, name: str, lines: list[str]) -> str:
    (directory / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(directory / name)


def pairs(tagged: list[str]) -> tuple[list[str], list[str]]:
    """Source and target lines; `tagged` are the source lines."""
    targets = []
    for line in tagged:
        side = 1 if line.startswith(TAGS[1]) else 0
        targets.append(" ".join(WORDS[word][side] for word in line.split() if word in WORDS))
    return tagged, targets


GOOD = [
    f"{tag} {first} {second}" for tag in TAGS for first in WORDS for second in WORDS
] * 4  # fmt: skip


def trained(directory: Path, lines: list[str], *flags: str, valid: list[str] | None = None) -> str:
    """Train for an update in a directory; returns what was told."""
    source, target = pairs(lines)
    arguments = ["-s", write(directory, "s", source), "-t", write(directory, "t", target)]
    if valid is not None:
        source, target = pairs(valid)
        arguments += ["-vs", write(directory, "vs", source), "-vt", write(directory, "vt", target)]
    result = invoke([
        "train", *arguments, "-o", str(directory / "model"), *flags, "--max-updates", "1",
        "--device", "cpu", "--precision", "fp32",
    ])  # fmt: skip
    assert result.code == 0, result.err
    return result.err


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tagged")
    stderr = trained(directory, GOOD, *TINY_SHAPE)
    assert "tokenizer: language tags, one token each: >>deu<<, >>fra<<\n" in stderr
    assert "warning: " not in stderr
    return directory / "model"


def source_tokenizer(model: Path) -> Tokenizer:
    return load_tokenizers(model, load_config(model)).source


# --- training ---


def test_tags_of_the_training_text_are_pieces(model: Path) -> None:
    assert source_tokenizer(model).language_tags == tuple(sorted(TAGS))


def test_each_side_may_have_its_own_tokenizer(tmp_path: Path) -> None:
    flags = ["--set", "tokenizer.joint=false", "--set", "model.tied_embeddings=2"]
    trained(tmp_path, GOOD, *TINY_SHAPE, *flags)

    pair = load_tokenizers(tmp_path / "model", load_config(tmp_path / "model"))
    assert pair.source.language_tags == tuple(sorted(TAGS))
    assert pair.target.language_tags == ()


@pytest.mark.parametrize(
    ("given", "known"),
    [('[">>fra<<", ">>spa<<"]', (">>fra<<", ">>spa<<")), ("none", ())],
)
def test_setting_of_the_tags_goes_before_the_text(
    given: str, known: tuple[str, ...], tmp_path: Path
) -> None:
    stderr = trained(tmp_path, GOOD, *TINY_SHAPE, "--set", f"data.tags={given}")

    assert source_tokenizer(tmp_path / "model").language_tags == known
    source = tmp_path / "s"
    if known:
        wrong = "36 of 72 source lines have a language tag that the tokenizer does not have"
        assert f"warning: {source}:10: {wrong}: it has >>fra<<, >>spa<<\n" in stderr
    else:
        wrong = "72 of 72 source lines have an apparent language tag at the start"
        assert f"warning: {source}:1: {wrong}, which the tokenizer reads as text\n" in stderr


def test_few_lines_with_tags_are_text_and_told(tmp_path: Path) -> None:
    plain = [line.removeprefix(TAGS[0] + " ") for line in GOOD if line.startswith(TAGS[0])]

    stderr = trained(tmp_path, [*plain, f"{TAGS[0]} one"], *TINY_SHAPE)

    assert source_tokenizer(tmp_path / "model").language_tags == ()
    wrong = "1 of 37 source lines has an apparent language tag at the start"
    advice = "which the tokenizer reads as text; list them in `data.tags` if they are tags"
    assert f"warning: {tmp_path / 's'}:37: {wrong}, {advice}\n" in stderr


@pytest.mark.parametrize("given", ["fra", ">>f r<<", '[">>fra<<", "none"]', ">><<"])
def test_what_is_no_tag_is_a_wrong_setting(given: str, run_tfm: RunTfm, tmp_path: Path) -> None:
    result = run_tfm(["train", "-o", str(tmp_path / "m"), "--set", f"data.tags={given}"])

    assert result.code == 2
    assert "data.tags: must be tags such as `>>fra<<`, or `none`, got `" in result.err


def test_tag_that_is_listed_twice_is_a_wrong_setting(run_tfm: RunTfm, tmp_path: Path) -> None:
    given = 'data.tags=[">>fra<<", ">>deu<<", ">>fra<<"]'

    result = run_tfm(["train", "-o", str(tmp_path / "m"), "--set", given])

    assert result.code == 2
    assert "data.tags: has `>>fra<<` more than once" in result.err


def test_lines_without_their_tag_are_told_once_where_a_tagged_model_learns_more(
    model: Path, tmp_path: Path
) -> None:
    lines = ["", *GOOD[:5], "one two", ">>xyz<< two", "three", ">>xyz<< one"]

    stderr = trained(
        tmp_path, lines, "--pretrained-model", str(model), valid=[GOOD[0], "two", ">>abc<< one"]
    )

    source, valid = tmp_path / "s", tmp_path / "vs"
    missing = "no language tag at the start, such as >>deu<<"
    unknown = "a language tag that the tokenizer does not have: it has >>deu<<, >>fra<<"
    assert [line for line in stderr.split("\n") if " source lines ha" in line] == [
        f"warning: {source}:7: 2 of 9 source lines have {missing}",
        f"warning: {source}:8: 2 of 9 source lines have {unknown}",
        f"warning: {valid}:2: 1 of 3 source lines has {missing}",
        f"warning: {valid}:3: 1 of 3 source lines has {unknown}",
    ]


def test_lines_without_their_tag_are_told_of_prepared_text_too(model: Path, tmp_path: Path) -> None:
    flags = ["--pretrained-model", str(model), "--data-cache", str(tmp_path / "cache")]
    lines = [*GOOD[:5], "one two"]

    matching = [
        trained(tmp_path, lines, *flags, "--overwrite", "--set", f"data.workers={workers}")
        for workers in (1, 1)
    ]

    missing = "1 of 6 source lines has no language tag at the start, such as >>deu<<"
    assert f"warning: {tmp_path / 's'}:6: {missing}\n" in matching[0]
    assert f"warning: {tmp_path / 's'}:6: {missing}\n" in matching[1]


def test_tag_that_the_tokenizer_has_not_cannot_be_asked_for(
    model: Path, run_tfm: RunTfm, tmp_path: Path
) -> None:
    source, target = pairs(GOOD)
    result = run_tfm([
        "train", "-s", write(tmp_path, "s", source), "-t", write(tmp_path, "t", target),
        "-o", str(tmp_path / "m"), "--pretrained-model", str(model), "--device", "cpu",
        "--set", 'data.tags=[">>fra<<", ">>spa<<"]',
    ])  # fmt: skip

    assert result.code == 2
    assert "error: data.tags: the tokenizer has no piece for >>spa<<\n" in result.err


def test_tokenize_train_finds_the_tags_too(run_tfm: RunTfm, tmp_path: Path) -> None:
    source, target = pairs(GOOD)
    text = [write(tmp_path, "s", source), write(tmp_path, "t", target)]

    result = run_tfm([
        "tokenize", "train", "-i", ",".join(text), "--model-prefix", str(tmp_path / "m"),
        "--vocab-size", "300", "--no-hard-vocab-limit",
    ])  # fmt: skip

    assert result.code == 0, result.err
    assert "language tags, one token each: >>deu<<, >>fra<<\n" in result.err
    assert Tokenizer.load(tmp_path / "m.model").language_tags == tuple(sorted(TAGS))


# --- translation ---


def test_missing_and_unknown_tags_are_told_with_file_and_line(
    model: Path, run_tfm: RunTfm, tmp_path: Path
) -> None:
    path = write(tmp_path, "in", [">>fra<< one", "", "one", ">>xyz<< one", "two", ">>xyz<< two"])

    result = run_tfm(["translate", "-m", str(model), "-i", path, "-q", "--device", "cpu"])

    assert result.err.splitlines() == [
        f"warning: {path}:3: has no target language, such as >>deu<< at its start",
        f"warning: {path}:4: `>>xyz<<` is not a target language: the model has >>deu<<, >>fra<<",
    ]


def test_model_without_tags_reads_them_as_text_and_says_so(
    tiny_model: Path, run_tfm: RunTfm
) -> None:
    result = run_tfm(
        ["translate", "-m", str(tiny_model), "-q", "--device", "cpu"], "one\n>>fra<< one\n"
    )

    message = "the model has no language tags and reads it as text"
    assert result.err == (
        f"warning: standard input:2: `>>fra<<` is not a target language: {message}\n"
    )


# --- other toolkits ---


@pytest.mark.slow
def test_marian_tokenizer_reads_the_tags_and_they_come_back(
    model: Path, run_tfm: RunTfm, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install 'tfm-cli[hf]'")
    out, back = tmp_path / "out", tmp_path / "back"

    done = run_tfm(["export", str(model), "--to", "hf", "-o", str(out)])
    returned = run_tfm(["import", str(out), "-o", str(back), "-q"])

    assert done.code == returned.code == 0, done.err + returned.err
    assert done.err.startswith("verified with transformers ")
    source = source_tokenizer(model)
    theirs = transformers.MarianTokenizer.from_pretrained(out)
    lines = [">>fra<< one two", ">>deu<<two", ">>deu<<", ">>xyz<< one", "one"]
    assert theirs(lines).input_ids == [[*ids, source.eos_id] for ids in source.encode(lines)]
    assert (back / "tokenizer.model").read_bytes() == (model / "tokenizer.model").read_bytes()


def test_pieces_of_sentencepiece_are_what_ctranslate2_wants(
    model: Path, run_tfm: RunTfm, tmp_path: Path
) -> None:
    pytest.importorskip("ctranslate2", reason="pip install 'tfm-cli[ctranslate2]'")
    import sentencepiece

    out = tmp_path / "out"

    done = run_tfm(["export", str(model), "--to", "ctranslate2", "-o", str(out)])

    assert done.code == 0, done.err
    processor = sentencepiece.SentencePieceProcessor(str(out / "source.spm"))
    vocabulary = json.loads((out / "shared_vocabulary.json").read_text("utf-8"))
    pieces = processor.Encode(">>fra<< one two", out_type=str)
    ids = source_tokenizer(model).encode([">>fra<< one two"])[0]
    assert [vocabulary.index(piece) for piece in pieces] == ids


@pytest.mark.slow
@representative("kind", ["tiny", "tagged"])
def test_probe_of_lines_that_others_read_otherwise_verifies_nothing(
    kind: str, tiny_model: Path, model: Path, run_tfm: RunTfm, tmp_path: Path
) -> None:
    pytest.importorskip("transformers", reason="pip install 'tfm-cli[hf]'")
    used = tiny_model if kind == "tiny" else model
    lines = [">>fra<< one", ">>fra<< two"] if kind == "tiny" else [">>fra<< one <<", "</s>"]
    probe = write(tmp_path, "probe", lines)

    done = run_tfm(
        ["export", str(used), "--to", "hf", "-o", str(tmp_path / "out"), "--probe", probe]
    )

    assert done.code == 0, done.err
    assert "warning: not verified with transformers " in done.err
    assert "the segmentation of no line was compared" in done.err
    reason = "only the other program reads a language tag at the beginning"
    assert ("2 lines" if kind == "tiny" else "1 line") + f" was not compared: {reason}" in done.err


def test_tags_that_were_learned_as_text_are_told_at_the_export(
    run_tfm: RunTfm, tmp_path: Path
) -> None:
    """As all tags of a model that earlier versions trained."""
    shape = ["--vocab-size", "320", *TINY_SHAPE[4:-4]]
    trained(tmp_path, GOOD, *shape, "--set", "data.tags=none")

    done = run_tfm(["export", str(tmp_path / "model"), "--to", "hf", "-o", str(tmp_path / "out")])

    assert done.code == 0, done.err
    assert (
        "warning: tokenizers: this model reads language tags such as `>>fra<<` as text, but "
        "MarianTokenizer does not: do not use them there\n"
    ) in done.err


def test_tag_that_sentencepiece_cuts_is_refused_by_hugging_face(
    run_tfm: RunTfm, tmp_path: Path
) -> None:
    """As earlier versions learned it, with a blank before it."""
    import sentencepiece

    source, target = pairs(GOOD)
    with (tmp_path / "m.model").open("wb") as stream:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter([*source, *target]), model_writer=stream, vocab_size=100,
            hard_vocab_limit=False, user_defined_symbols=list(TAGS), minloglevel=3,
        )  # fmt: skip
    shape = TINY_SHAPE[4:-4]
    trained(tmp_path, GOOD, *shape, "--tokenizer", str(tmp_path / "m.model"))

    result = run_tfm(["export", str(tmp_path / "model"), "--to", "hf", "-o", str(tmp_path / "out")])

    assert result.code == 2
    assert "MarianTokenizer has one piece for a language tag, got `▁`, `>>deu<<`" in result.err
    assert not (tmp_path / "out").exists()


# --- checking ---


@pytest.mark.parametrize("with_model", [False, True])
def test_check_tells_of_missing_and_unknown_tags(
    with_model: bool, model: Path, run_tfm: RunTfm, tmp_path: Path
) -> None:
    train, valid = pairs([*GOOD[:18], "", "one", "two"]), pairs(["one", ">>xyz<< two", GOOD[0]])
    arguments = [
        "-s", write(tmp_path, "s", train[0]), "-t", write(tmp_path, "t", train[1]),
        "-vs", write(tmp_path, "vs", valid[0]), "-vt", write(tmp_path, "vt", valid[1]),
        *(["--model", str(model)] if with_model else []),
    ]  # fmt: skip

    result = run_tfm(["check", *arguments, "--format", "json"])

    report = json.loads(result.out)
    actual = [each for each in report["findings"] if each["code"] in ("untagged", "unknown_tag")]
    known = "the tokenizer does not have: it has" if with_model else (
        "the training corpus does not have: it has"
    )  # fmt: skip
    missing = "no language tag at the start, such as >>deu<<"
    assert [(each["level"], each["message"]) for each in actual] == [
        ("warning", f"{tmp_path / 's'}:20: 2 source lines (10.00 %) with {missing}"),
        ("warning", f"{tmp_path / 'vs'}:1: 1 source line (33.33 %) with {missing}"),
        (
            "warning",
            f"{tmp_path / 'vs'}:2: 1 source line (33.33 %) with a language tag that {known} "
            ">>deu<<, >>fra<<",
        ),
    ]
    tags = report["corpora"]["valid"]["language_tags"]
    assert tags == {
        "known": [">>deu<<", ">>fra<<"],
        "untagged": {"count": 1, "file": str(tmp_path / "vs"), "line": 1},
        "unknown": {"count": 1, "file": str(tmp_path / "vs"), "line": 2},
    }


def test_check_takes_few_lines_with_tags_for_text(run_tfm: RunTfm, tmp_path: Path) -> None:
    source, target = ["one"] * 30 + [">>next<< one"], ["un"] * 31

    result = run_tfm([
        "check", "-s", write(tmp_path, "s", source), "-t", write(tmp_path, "t", target),
        "--format", "json",
    ])  # fmt: skip

    (actual,) = (each for each in json.loads(result.out)["findings"] if "tag" in each["code"])
    assert (actual["level"], actual["code"], actual["line"]) == ("note", "unknown_tag", 31)


def test_prefix_of_a_line_that_is_a_tag_alone_is_refused(model: Path, run_tfm: RunTfm) -> None:
    flags = ["translate", "--model", str(model), "--device", "cpu", "-q", "--json-input"]
    given = r'{"text": ">>fra<<\none two", "target_prefix": "%s"}' + "\n"

    lost = run_tfm(flags, given % r"one\ntwo")
    kept = run_tfm(flags, given % r"\ntwo")

    assert (lost.code, lost.out, kept.code) == (3, "", 0)
    assert "line 1: line 1 of the target prefix has text, line 1 of the source has none" in lost.err
    assert kept.out.startswith("two")
