"""Write the sample corpus: train, valid, test, combinations and pronouns, in English and French."""

import argparse
import sys
from pathlib import Path

from phrasebook.splits import Corpus, build_corpus

HERE = Path(__file__).resolve().parent


def texts(corpus: Corpus) -> dict[str, bytes]:
    """Return the content of the corpus files by name."""
    files = {}
    for name, examples in corpus.sets.items():
        files[f"{name}.en"] = "".join(f"{example.source}\n" for example in examples).encode()
        files[f"{name}.fr"] = "".join(f"{example.target}\n" for example in examples).encode()
    files["pronouns.antecedents"] = "".join(
        f"{right}\t{wrong}\n" for right, wrong in corpus.antecedents
    ).encode()
    return files


def main(arguments: list[str] | None = None) -> int:
    """Write the files, or compare them with the existing ones, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=HERE, help="directory to write to, default: this one"
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 unless the files are up to date"
    )
    options = parser.parse_args(arguments)
    files = texts(build_corpus())
    if options.check:
        stale = [
            name for name, text in files.items() if not _is_current(options.output / name, text)
        ]
        for name in stale:
            sys.stderr.write(f"{options.output / name} differs from the output of generate.py\n")
        return 1 if stale else 0
    options.output.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (options.output / name).write_bytes(text)
    return 0


def _is_current(path: Path, text: bytes) -> bool:
    return path.is_file() and path.read_bytes() == text


if __name__ == "__main__":
    raise SystemExit(main())
