"""Feed a target with ever new bytes: `tests/fuzz/fuzz.py TARGET --seconds N`.

With atheris (`pip install atheris`) the new bytes are those that reach new code. Without it, or
with `--plain`, they are changed copies of the corpus, of which those are kept that are answered in
a new way. What breaks the target is written to a file, and the exit code is 1.
"""

import argparse
import contextlib
import mmap
import os
import random
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"
_LONGEST = 1 << 16
_KEPT = 2000
_NUMBERS = (
    b"0",
    b"-1",
    b"1e400",
    b"1.0",
    b"18446744073709551616",
    b"true",
    b"null",
    b"NaN",
    b'"x"',
)
_WORDS = (
    b'"a"', b"[]", b"{}", b"{", b"[", b"}", b"\xff", b"\xef\xbb\xbf", b"\r\n", b"\n", b"\0",
    b"\\ud800", b'"__metadata__":{}', b'"shape":[', b'"data_offsets":[0,4]', b'"dtype":"F32"',
    b"\xc3", b"\x1f\x8b\x08", b"\x0a", b"\x12", b"\x1a", b"\x15", b"\xff\xff\xff\xff\x7f",
    b"format_version", b"settings", b"sha256", b"\xe2\x96\x81",
)  # fmt: skip


def mutated(content: bytes, other: bytes, chance: random.Random) -> bytes:
    """The bytes with a few changes."""
    found = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 8))):
        place = chance.randrange(len(found) + 1)
        length = min(len(found) - place, chance.choice((1, 1, 2, 4, 16, 256)))
        kind = chance.randrange(8)
        if kind == 0 and length:
            found[place] ^= 1 << chance.randrange(8)
        elif kind == 1 and length:
            found[place] = chance.choice((0, 1, 10, 34, 127, 128, 255, chance.randrange(256)))
        elif kind == 2:
            del found[place : place + length]
        elif kind == 3:
            found[place:place] = found[place : place + length] * chance.choice((1, 1, 2, 20))
        elif kind == 4:
            found[place:place] = chance.choice(_WORDS)
        elif kind == 5:
            start = chance.randrange(len(other) + 1)
            found[place : place + length] = other[start : start + length]
        elif kind == 6:
            numbers = list(re.finditer(rb"[0-9]+", found))
            if numbers:
                one = chance.choice(numbers)
                found[one.start() : one.end()] = chance.choice(_NUMBERS)
        else:
            found[place : place + length] = bytes(chance.randrange(256) for _ in range(length))
    return bytes(found[:_LONGEST])


def _kind(answer: str) -> str:
    """The answer without what stands in it by chance."""
    return re.sub(r"`[^`]*`|[0-9]+|/\S*", "", answer)[:80]


def run_plain(name: str, *, seconds: float, seed: int, note: mmap.mmap, results: int) -> None:
    """Change and try until the time is over; in a process that may crash."""
    from tests.fuzz.targets import TARGETS

    target, chance = TARGETS[name], random.Random(seed)
    kept = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    seen, count, end = set[str](), 0, time.monotonic() + seconds
    while time.monotonic() < end:
        content = mutated(chance.choice(kept), chance.choice(kept), chance)
        note.seek(0)
        note.write(len(content).to_bytes(8, "little") + content)
        answer = _kind(target(content))
        count += 1
        if answer not in seen:
            seen.add(answer)
            kept.append(content)
            del kept[:-_KEPT]
    os.write(results, f"{count} inputs, {len(seen)} kinds of answers".encode())


def fuzz_plain(name: str, *, seconds: float, seed: int) -> int:
    """Run in a child; says how many inputs there were, and what the last was if it crashed."""
    from tests.fuzz.targets import place_of

    note = mmap.mmap(-1, _LONGEST + 8)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(KeyboardInterrupt):
            try:
                run_plain(name, seconds=seconds, seed=seed, note=note, results=writer)
                code = 0
            except BaseException:  # whatever it is, it is what was looked for
                sys.excepthook(*sys.exc_info())
        os._exit(code)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    told = os.read(reader, 1 << 12).decode()
    shutil.rmtree(place_of(child), ignore_errors=True)
    if status:
        size = int.from_bytes(note[:8], "little")
        place = Path(tempfile.gettempdir()) / f"tfm-fuzz-{name}-{seed}"
        place.write_bytes(note[8 : 8 + size])
        print(f"{name}: broken (status {status}) by {place}")
        return 1
    print(f"{name}: {told} in {seconds:g} s, seed {seed}, none broke it")
    return 0


def fuzz_atheris(name: str, *, seconds: float, seed: int) -> None:
    """Never comes back: libFuzzer ends the process, with its own words and exit code."""
    import atheris

    with atheris.instrument_imports(include=["tfm_cli"]):
        from tests.fuzz.targets import TARGETS

    target = TARGETS[name]
    new = tempfile.mkdtemp(prefix=f"tfm-fuzz-{name}-")
    options = [
        f"-max_total_time={seconds:g}", f"-seed={seed}", f"-max_len={_LONGEST}", "-verbosity=0",
        "-print_final_stats=1", f"-artifact_prefix={new}/broken-", new, str(CORPUS / name),
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options], lambda content: void(target(content)))
    atheris.Fuzz()


def void(_: object) -> None:
    """Nothing, which is what libFuzzer wants to be given back."""


def main() -> int:
    """Fuzz the target that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=sorted(path.name for path in CORPUS.iterdir()))
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--plain", action="store_true", help="do without atheris")
    chosen = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    with contextlib.suppress(ImportError):
        if not chosen.plain:
            fuzz_atheris(chosen.target, seconds=chosen.seconds, seed=chosen.seed)
    return fuzz_plain(chosen.target, seconds=chosen.seconds, seed=chosen.seed)


if __name__ == "__main__":
    sys.exit(main())
