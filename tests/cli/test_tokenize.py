import gzip
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from tfm_cli.cli import app
from tfm_cli.tokenizer.tokenizer import Tokenizer

TEXT = [f"line {number} of {number * 7919 % 1000} on the mät" for number in range(400)]


def tokenize(*arguments: str, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(app, ["tokenize", *arguments], input=stdin, prog_name="tfm")


@pytest.fixture(autouse=True)
def _texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_bytes: bytes) -> None:
    """`text` to learn from and `m.model`, in a directory of their own."""
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("".join(f"{line}\n" for line in TEXT), encoding="utf-8")
    Path("m.model").write_bytes(model_bytes)


@pytest.fixture(scope="module")
def model_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("model")
    (directory / "text").write_text("".join(f"{line}\n" for line in TEXT), encoding="utf-8")
    prefix = str(directory / "m")
    result = tokenize(
        "train", "-i", str(directory / "text"), "--model-prefix", prefix, "--vocab-size", "320"
    )
    assert result.exit_code == 0, result.stderr
    return Path(f"{prefix}.model").read_bytes()


def learn(*arguments: str, stdin: bytes = b"") -> Result:
    given = ("--model-prefix", "new", "--vocab-size", "320", *arguments)
    return tokenize("train", *given, stdin=stdin)


def encode_to_file(text: bytes, *arguments: str) -> bytes:
    result = tokenize("encode", "-m", "m.model", "-o", "encoded", *arguments, stdin=text)
    assert result.exit_code == 0, result.stderr
    return Path("encoded").read_bytes()


def decode_to_file(encoded: bytes, *arguments: str) -> bytes:
    result = tokenize("decode", "-m", "m.model", "-o", "decoded", *arguments, stdin=encoded)
    assert result.exit_code == 0, result.stderr
    return Path("decoded").read_bytes()


def normalized(lines: Sequence[str], model_bytes: bytes) -> list[str]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model_bytes)
    return [processor.Normalize(line).replace("▁", " ").removeprefix(" ") for line in lines]


def test_train_writes_what_spm_train_writes() -> None:
    result = learn("-i", "text", "--quiet")

    sentencepiece.SentencePieceTrainer.Train(
        input="text", model_prefix="theirs", vocab_size=320, byte_fallback=True, minloglevel=3,
        normalization_rule_name="identity", pad_id=0, unk_id=1, bos_id=2, eos_id=3,
    )  # fmt: skip
    assert (result.exit_code, result.output) == (0, "")
    assert Path("new.vocab").read_bytes() == Path("theirs.vocab").read_bytes()
    ours, theirs = (Tokenizer.load(Path(f"{name}.model")) for name in ("new", "theirs"))
    assert ours.scored_pieces == theirs.scored_pieces


def test_train_says_in_one_line_what_it_did() -> None:
    result = learn("-i", "text")

    message = "wrote new.model and new.vocab: 320 unigram tokens from 400 lines\n"
    assert (result.stdout, result.stderr) == ("", message)


def test_same_text_and_flags_give_the_same_files(model_bytes: bytes) -> None:
    learn("-i", "text")

    assert Path("new.model").read_bytes() == model_bytes


def test_train_reads_plain_gzip_several_files_and_standard_input_alike(
    model_bytes: bytes,
) -> None:
    text = Path("text").read_bytes()
    Path("text.gz").write_bytes(gzip.compress(text))
    half = text.index(b"line 200 ")
    Path("a").write_bytes(text[:half])
    Path("b").write_bytes(text[half:].removesuffix(b"\n"))
    Path("text").rename("with,comma")

    for arguments in (
        ["-i", "text.gz"], ["-i", "a,b"], ["-i", "a", "--input", "b"], ["-i", "with,comma"],
    ):  # fmt: skip
        assert learn(*arguments).exit_code == 0
        assert Path("new.model").read_bytes() == model_bytes
    for stdin in (text, gzip.compress(text)):
        assert learn(stdin=stdin).exit_code == 0
        assert Path("new.model").read_bytes() == model_bytes


def test_underscores_are_taken_for_hyphens() -> None:
    spelled = [
        "train", "--input=text", "--model_prefix=new", "--vocab_size", "300",
        "--model_type=bpe", "--normalization_rule_name=nmt-nfkc", "--no-byte_fallback",
    ]  # fmt: skip

    assert tokenize(*spelled).exit_code == 0
    assert tokenize("encode", "--model", "m.model", "--output_format=id").exit_code == 0


def test_sentencepiece_flags_take_effect() -> None:
    symbols = ("--split-digits", "--user-defined-symbols", "<x>,mat")
    assert learn("-i", "text", "--no-hard-vocab-limit", *symbols).exit_code == 0
    Path("m.model").write_bytes(Path("new.model").read_bytes())

    assert encode_to_file(b"mats 123 <x>").split()[-1] == b"<x>"
    assert {b"mat", b"1", b"2", b"3"} <= set(encode_to_file(b"mats 123").split())


def test_a_soft_limit_learns_what_the_text_yields() -> None:
    result = learn("-i", "text", "--vocab-size", "9999", "--no-hard-vocab-limit")

    size = Tokenizer.load(Path("new.model")).vocab_size
    assert result.exit_code == 0
    assert f"tokenizer: {size} tokens instead of 9999, the text yields no more" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-i", "text", "--vocab-size", "9999"], 2, "`vocab_size` is 9999, but the text yields"),
        (["-i", "text", "--vocab-size", "260"], 2, "`vocab_size` is 260, but the characters"),
        (["-i", "text", "--vocab-size", "1"], 2, "`--vocab-size` must be at least 8, got 1"),
        (["-i", "text", "--model-type", "unigran"], 2, "got `unigran`; did you mean `unigram`?"),
        (
            ["-i", "text", "--character-coverage", "0"],
            2,
            "-coverage` must be at least 0.001",
        ),
        (["-i", "text", "--user-defined-symbols", "<s>"], 2, "these symbols already: `<s>`"),
        (["-i", "text", "--user-defined-symbols", "<x>, mat"], 2, "have a space: ` mat`"),
        (["-i", "text", "--normalization-rule-name", "nfk"], 2, "did you mean `nfkc`?"),
        (["-i", "text", "--normalization-rule-name", "no.tsv"], 3, "no.tsv: cannot be read: No s"),
        (
            ["-i", "text", "--model-prefix", "out/"],
            2,
            "must end in the name of a file, got `out/`",
        ),
        (["-i", "no,nor"], 3, "error: no: there is no such file\n  nor: there is no such file\n"),
        (["-i", "."], 3, ".: cannot be read: Is a directory"),
        (["-i", "empty"], 3, "0 usable lines to train a tokenizer on: 0 read"),
        (["-i", "blank.gz"], 3, "0 usable lines to train a tokenizer on: 2 read, 2 blank"),
        (["-i", "cut.gz"], 3, "cut.gz: the gzip data is damaged or cut off"),
        (["-i", "latin1"], 3, "latin1:2: byte 2: 0xe4 is not UTF-8"),
        (["-i", "text", "--model-prefix", "text/new"], 5, "text/new.model: cannot be written"),
        (["-i", "text", "--model-prefix", "taken"], 5, "taken.vocab: cannot be written"),
    ],
)
def test_train_refuses(arguments: list[str], code: int, message: str) -> None:
    Path("empty").touch()
    Path("blank.gz").write_bytes(gzip.compress(b"\n \n"))
    Path("cut.gz").write_bytes(gzip.compress(os.urandom(99).hex().encode())[:-12])
    Path("latin1").write_bytes("gut\nkäse\n".encode("latin-1"))
    Path("taken.vocab").mkdir()
    before = sorted(Path().rglob("*"))

    result = learn(*arguments)

    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert sorted(Path().rglob("*")) == before


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lines=st.lists(st.text(st.characters(exclude_characters="\n\0", exclude_categories=["Cs"]))))
def test_decode_after_encode_gives_the_normalized_text(
    lines: list[str], model_bytes: bytes
) -> None:
    text = "".join(f"{line}\n" for line in ["first", *lines]).encode()  # no CRLF file, no BOM
    expected = "".join(f"{line}\n" for line in normalized(["first", *lines], model_bytes)).encode()

    assert decode_to_file(encode_to_file(text)) == expected
    ids = encode_to_file(text, "--output-format", "id")
    assert decode_to_file(ids, "--input-format", "id") == expected


@pytest.mark.parametrize("output_format", ["piece", "id"])
def test_line_i_is_what_sentencepiece_makes_of_line_i(
    output_format: str, model_bytes: bytes
) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model_bytes)
    kind = {"piece": str, "id": int}[output_format]

    encoded = encode_to_file("".join(f"{line}\n\n" for line in TEXT).encode(),
                             "--output-format", output_format)  # fmt: skip

    lines = encoded.decode().split("\n")[:-1]
    assert lines[0::2] == [
        " ".join(map(str, processor.Encode(line, return_type=kind))) for line in TEXT
    ]
    assert set(lines[1::2]) == {""}


def test_a_model_directory_stands_for_its_tokenizer() -> None:
    Path("model").mkdir()
    Path("model/tokenizer.model").write_bytes(Path("m.model").read_bytes())

    result = tokenize("encode", "-m", "model", stdin=b"on the mat\n")

    assert result.stdout.encode() == encode_to_file(b"on the mat\n")


@pytest.mark.slow
def test_sampling_depends_on_the_seed_and_decodes_to_the_same_text() -> None:
    text = "".join(f"{line}\n" for line in TEXT).encode()
    flags = ("--nbest-size", "-1", "--alpha", "0.2", "--seed")

    one, again, other = (encode_to_file(text, *flags, seed) for seed in ("1", "1", "2"))
    ids = encode_to_file(text, *flags, "1", "--output-format", "id")

    assert one == again
    assert len({one, other, encode_to_file(text)}) == 3
    assert decode_to_file(one) == decode_to_file(other) == text
    assert decode_to_file(ids, "--input-format", "id") == text
    assert [len(line.split()) for line in ids.split(b"\n")] == [
        len(line.split(b" ")) if line else 0 for line in one.split(b"\n")
    ]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("4 x 5", "`x` is not an id, expected 0 to 319"),
        ("-1", "`-1` is not an id, expected 0 to 319"),
        ("1_0", "`1_0` is not an id, expected 0 to 319"),
        ("٣", "`٣` is not an id, expected 0 to 319"),
        ("5 320", "id 320 is too large, expected 0 to 319"),
        ("9" * 5000, f"id {'9' * 40} is too large, expected 0 to 319"),
    ],
)
def test_decode_refuses_what_is_no_id(line: str, complaint: str) -> None:
    Path("ids").write_text(f"4 5\n\n{line}\n", encoding="utf-8")

    result = tokenize("decode", "-m", "m.model", "--input-format", "id", "ids")

    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == f"error: ids:3: {complaint}\n"


@pytest.mark.parametrize("command", ["encode", "decode"])
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["text"], 2, "`--model` is missing"),
        (["-m", "m.model", "text", "-i", "text"], 2, "not both"),
        (["-m", "m.model", "no", "nor"], 3, "error: no: there is no such file\n  nor: there is"),
        (["-m", "m.model", "."], 3, "error: .: cannot be read: Is a directory\n"),
        (["-m", "no.model", "text"], 4, "no.model: cannot be read: No such file or directory"),
        (["-m", ".", "text"], 4, "tokenizer.model: cannot be read: No such file or directory"),
        (["-m", "text", "text"], 4, "error: text: is not a SentencePiece model: "),
        (["-m", "m.model", "text", "-o", "text/x"], 5, "text/x: cannot be written"),
        (["-m", "m.model", "text", "-o", "."], 5, ".: cannot be written"),
    ],
)
def test_encode_and_decode_refuse(
    command: str, arguments: list[str], code: int, message: str
) -> None:
    result = tokenize(command, *arguments)

    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr


@pytest.mark.parametrize("command", ["train", "encode", "decode"])
def test_help_has_an_example_and_needs_no_sentencepiece(command: str) -> None:
    result = tokenize(command, "--help")

    assert result.exit_code == 0
    assert f"Example:  tfm tokenize {command} " in result.stdout
