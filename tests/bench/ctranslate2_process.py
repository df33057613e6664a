"""What `tfm translate` does, done with CTranslate2 and SentencePiece: lines in, lines out."""

import argparse
import sys
from pathlib import Path

sys.modules["torch"] = None  # type: ignore[assignment]  # CTranslate2 would import it

import ctranslate2  # noqa: E402
import sentencepiece  # noqa: E402


def main() -> None:
    """Translate a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="what `tfm export --to ctranslate2` wrote")
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--compute-type", default="float32")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--beam-size", type=int, default=1)
    arguments = parser.parse_args()
    ctranslate2.set_log_level(40)  # errors
    translator = ctranslate2.Translator(
        str(arguments.directory), device="cpu", compute_type=arguments.compute_type,
        inter_threads=arguments.workers, intra_threads=arguments.threads,
    )  # fmt: skip
    source, target = (
        sentencepiece.SentencePieceProcessor(model_file=str(arguments.directory / f"{side}.spm"))
        for side in ("source", "target")
    )
    lines = arguments.input.read_text(encoding="utf-8").split("\n")[:-1]
    pieces = source.encode(lines, out_type=str)
    # As tfm does for the longest line; only a model that has hardly learned anything gets there.
    limit = 3 * max(map(len, pieces), default=0) + 10
    found = translator.translate_batch(
        pieces, beam_size=arguments.beam_size, max_batch_size=arguments.batch,
        max_decoding_length=limit, max_input_length=0,
    )  # fmt: skip
    texts = target.decode([result.hypotheses[0] for result in found])
    with arguments.output.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(f"{text}\n" for text in texts)


if __name__ == "__main__":
    main()
