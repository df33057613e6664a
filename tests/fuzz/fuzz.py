"""Fuzz a target: `tests/fuzz/fuzz.py TARGET --seconds N`.

With atheris (`pip install atheris`) inputs are guided by coverage. Without it, or with `--plain`,
they are mutations of the corpus, of which those with a new outcome are kept. An input that breaks
the target is written to a file, and the exit code is 1.
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


def mutated(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """Return a copy with a few random changes."""
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        place = rng.randrange(len(found) + 1)
        length = min(len(found) - place, rng.choice((1, 1, 2, 4, 16, 256)))
        kind = rng.randrange(8)
        if kind == 0 and length:
            found[place] ^= 1 << rng.randrange(8)
        elif kind == 1 and length:
            found[place] = rng.choice((0, 1, 10, 34, 127, 128, 255, rng.randrange(256)))
        elif kind == 2:
            del found[place : place + length]
        elif kind == 3:
            found[place:place] = found[place : place + length] * rng.choice((1, 1, 2, 20))
        elif kind == 4:
            found[place:place] = rng.choice(_WORDS)
        elif kind == 5:
            start = rng.randrange(len(other) + 1)
            found[place : place + length] = other[start : start + length]
        elif kind == 6:
            numbers = list(re.finditer(rb"[0-9]+", found))
            if numbers:
                one = rng.choice(numbers)
                found[one.start() : one.end()] = rng.choice(_NUMBERS)
        else:
            found[place : place + length] = bytes(rng.randrange(256) for _ in range(length))
    return bytes(found[:_LONGEST])


def _kind(answer: str) -> str:
    """Return an outcome without its arbitrary parts."""
    return re.sub(r"`[^`]*`|[0-9]+|/\S*", "", answer)[:80]


def run_plain(name: str, *, seconds: float, seed: int, note: mmap.mmap, results: int) -> None:
    """Mutate and try inputs until the time is up, in a process that may crash."""
    from tests.fuzz.targets import TARGETS

    target, rng = TARGETS[name], random.Random(seed)
    kept = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    seen, count, end = set[str](), 0, time.monotonic() + seconds
    while time.monotonic() < end:
        content = mutated(rng.choice(kept), rng.choice(kept), rng)
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
    """Fuzz in a child process, and return the exit code; an input that crashes it is saved."""
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
            except BaseException:  # any exception is a finding
                sys.excepthook(*sys.exc_info())
        os._exit(code)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    summary = os.read(reader, 1 << 12).decode()
    shutil.rmtree(place_of(child), ignore_errors=True)
    if status:
        size = int.from_bytes(note[:8], "little")
        path = Path(tempfile.gettempdir()) / f"tfm-fuzz-{name}-{seed}"
        path.write_bytes(note[8 : 8 + size])
        print(f"{name}: broken (status {status}) by {path}")
        return 1
    print(f"{name}: {summary} in {seconds:g} s, seed {seed}, none broke it")
    return 0


def fuzz_atheris(name: str, *, seconds: float, seed: int) -> None:
    """Run libFuzzer, which ends the process with its own messages and exit code."""
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
    """Return None, as libFuzzer requires."""


def main() -> int:
    """Fuzz the named target."""
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
