"""COMET's scores (Rei et al. 2020, arXiv:2009.09025), computed by another Python.

A COMET model is a pickle, which runs code when it is loaded, and `unbabel-comet` requires versions
of packages that exclude those of tfm. A Python of its own therefore loads the model, with
`comet_program.py`; this process sends it text and reads numbers.
"""

import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tfm_cli.console import one_line, visible
from tfm_cli.errors import ConfigError, ModelError, ResourceError
from tfm_cli.files.untrusted import parse_json_object, read_regular

PROGRAM = Path(__file__).with_name("comet_program.py")

_NEW_ENVIRONMENT = "`python3 -m venv comet` and `comet/bin/pip install unbabel-comet` make one"
_MAX_TEXT_BYTES = 1 << 20  # of hparams.yaml and of a model card
_MAX_STDERR_BYTES = 1 << 16
_BYTES_PER_SCORE = 32
# Nothing is downloaded, and no process is started for each of many threads' tokenizers.
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CometModel:
    """A COMET model on disk.

    Attributes:
        name: the name of its directory, or `Unbabel/wmt22-comet-da` in a cache of Hugging Face.
        revision: the first digits of the revision in such a cache; otherwise empty.
        kind: the `class_identifier` of `hparams.yaml`, such as `regression_metric`.
        encoder: the pretrained encoder, such as `xlm-roberta-large`; empty if it is not named.
        license: that of the model card; empty if it names none.
        checkpoint: the weights, a pickle.
    """

    name: str
    revision: str
    kind: str
    encoder: str
    license: str
    checkpoint: Path


@dataclass(frozen=True, slots=True)
class CometScores:
    """The scores of several systems.

    Attributes:
        segments: the score of each segment of each system.
        systems: the score of each system, which is the mean of its segments.
        version: of the package `unbabel-comet`.
        uses_references: True unless the model estimates quality without references.
    """

    segments: tuple[tuple[float, ...], ...]
    systems: tuple[float, ...]
    version: str
    uses_references: bool


def find_model(directory: Path) -> CometModel:
    """Return the COMET model in a directory, as `comet.download_model` leaves it.

    Raises:
        ModelError: there is no such directory, or it lacks a checkpoint or `hparams.yaml`.
    """
    if not directory.is_dir():
        reason = "is not a directory" if directory.exists() else "there is no such directory"
        raise ModelError(
            f"{directory}: {reason}",
            hint="give the directory of a COMET model, with `hparams.yaml` and `checkpoints`",
        )
    found = sorted((directory / "checkpoints").glob("*.ckpt"))
    named = directory / "checkpoints" / "model.ckpt"
    if named not in found and len(found) != 1:
        has = f"{len(found)} checkpoints" if found else "no checkpoint"
        raise ModelError(
            f"{directory}: has {has}, expected checkpoints/model.ckpt",
            hint="give the directory of a COMET model, with `hparams.yaml` and `checkpoints`",
        )
    settings = _text(directory / "hparams.yaml")
    kind = _value(settings, "class_identifier")
    if not kind:
        raise ModelError(
            f"{directory / 'hparams.yaml'}: does not exist, or has no `class_identifier`",
            hint="copy it from where the model comes from; COMET needs it to load the checkpoint",
        )
    name, revision = directory.resolve().name, ""
    if directory.resolve().parent.name == "snapshots":  # models--ORGANIZATION--NAME/snapshots/HASH
        revision = name[:12]
        name = directory.resolve().parents[1].name.removeprefix("models--").replace("--", "/")
    return CometModel(
        name=one_line(name),
        revision=one_line(revision),
        kind=kind,
        encoder=_value(settings, "pretrained_model"),
        license=_value(_text(directory / "README.md"), "license"),
        checkpoint=named if named in found else found[0],
    )


def find_python(name: str) -> str:
    """Return the path of a Python interpreter that is given by its path or its name.

    A link is not resolved, since the interpreter of a virtual environment is one.

    Raises:
        ConfigError: it does not exist or cannot be executed.
    """
    if not name:
        raise ConfigError("`--comet-python`: expected a Python, got an empty name")
    path = Path(name)
    if path.is_dir():
        inside = [each for each in (path / "bin" / "python", path / "python") if each.exists()]
        hint = f"give `{inside[0]}`" if inside else "give the interpreter in it"
        raise ConfigError(f"`--comet-python`: {name} is a directory, expected a Python", hint=hint)
    found = shutil.which(name)
    if found is None:
        reason = "cannot be executed" if path.exists() else "does not exist"
        raise ConfigError(f"`--comet-python`: {name} {reason}", hint=_NEW_ENVIRONMENT)
    return found


def comet_scores(
    python: str,
    model: CometModel,
    systems: Sequence[Sequence[str]],
    source: Sequence[str],
    reference: Sequence[str],
    *,
    device: str = "auto",
    stderr: BinaryIO | None = None,
) -> CometScores:
    """Return COMET's scores of the hypotheses of several systems.

    Args:
        python: the interpreter.
        model: the model.
        systems: hypotheses of each system, all as long as `source`.
        source: the source of each segment.
        reference: the reference of each segment.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        stderr: a stream that receives the progress and the messages of the other Python at once.

    Raises:
        ModelError: COMET cannot load the model.
        ResourceError: the process cannot be started, lacks COMET, fails, or gives no valid scores.
    """
    request = {
        "checkpoint": str(model.checkpoint),
        "lines": len(source),
        "systems": len(systems),
        "gpus": {"auto": None, "cpu": 0}.get(device, 1),
        "progress": stderr is not None,
    }
    samples = [
        {"src": one, "mt": hypothesis, "ref": other}
        for hypotheses in systems
        for one, hypothesis, other in zip(source, hypotheses, reference, strict=True)
    ]
    content = "".join(f"{json.dumps(each)}\n" for each in (request, *samples)).encode()
    environment = {**os.environ, **_OFFLINE}
    if device.startswith("cuda:"):
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        environment["CUDA_VISIBLE_DEVICES"] = visible_gpu(
            int(device.removeprefix("cuda:")), visible
        )
    limit = (1 << 20) + _BYTES_PER_SCORE * len(samples)
    answer, code, said = _run(python, content, environment, stderr, max_bytes=limit)
    if code:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        hint = "if memory ran out, use a smaller model" if code < 0 else None
        raise ResourceError(f"{python}: the process that computes COMET {how}{said}", hint=hint)
    try:
        table = parse_json_object(answer)
    except ValueError as error:
        raise _no_scores(python, f"expected a JSON object, found {_shown(answer)}") from error
    if "failed" in table:
        raise _failure(python, model, table)
    return _checked(python, table, len(systems), len(source))


def visible_gpu(index: int, visible: str | None) -> str:
    """Return the value of CUDA_VISIBLE_DEVICES for one of the GPUs that are visible; "" for none.

    Args:
        index: the number of the GPU among them.
        visible: the value that makes them visible; None if all GPUs are.
    """
    if visible is None:
        return str(index)
    return "".join(visible.split(",")[index : index + 1]).strip()


def _run(
    python: str,
    content: bytes,
    environment: dict[str, str],
    stderr: BinaryIO | None,
    *,
    max_bytes: int,
) -> tuple[bytes, int, str]:
    """Run the program on an input; return its answer, exit code and last line on stderr."""
    tail = bytearray()

    def send(pipe: BinaryIO) -> None:
        with suppress(OSError), pipe:  # the process may have ended
            pipe.write(content)

    def receive(pipe: BinaryIO) -> None:
        with pipe:
            while piece := os.read(pipe.fileno(), 1 << 14):
                tail.extend(piece)
                del tail[:-_MAX_STDERR_BYTES]
                if stderr is not None:
                    with suppress(OSError):
                        stderr.write(piece)
                        stderr.flush()

    # -I: neither the current directory nor PYTHONPATH, which is ours, has a part in it. A session
    # of its own: Ctrl-C goes to this process only, which ends that one and its data loaders.
    try:
        process = subprocess.Popen(
            [python, "-I", str(PROGRAM)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=environment, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise ResourceError(f"{python}: cannot be started: {error.strerror}") from error
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    threads = [
        threading.Thread(target=send, args=(process.stdin,), daemon=True),
        threading.Thread(target=receive, args=(process.stderr,), daemon=True),
    ]
    code: int | None = None
    try:
        for thread in threads:
            thread.start()
        answer = process.stdout.read(max_bytes)
        if len(answer) < max_bytes:
            code = process.wait()
    finally:
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for thread in threads:
            thread.join(timeout=5)  # a process that left the session may keep the pipe open
        process.stdout.close()
    if code is None:
        raise _no_scores(python, f"more than {max_bytes} bytes that begin with {_shown(answer)}")
    lines = bytes(tail).decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return answer, code, f": {one_line(last)[-300:]}" if last else ""


def _failure(python: str, model: CometModel, table: dict[str, object]) -> Exception:
    """Return the error for a failure that the program itself reports."""
    reason = " ".join(visible(str(table.get("reason"))).split())[:500]
    if table["failed"] == "import":
        if table.get("module") in ("comet", "torch"):
            message = f"{python}: has no package unbabel-comet"
            hint = f"install it with `{python} -m pip install unbabel-comet`"
            if Path(python).absolute().parent == Path(sys.executable).absolute().parent:
                hint = _NEW_ENVIRONMENT  # the versions that it requires would replace those of tfm
            return ResourceError(message, hint=hint)
        return ResourceError(f"{python}: cannot import unbabel-comet: {reason}")
    if table["failed"] == "load":
        hint = "the tokenizer and configuration of its encoder must be in the cache of Hugging Face"
        if model.encoder:
            hint = f"its encoder is {model.encoder}: {hint.partition('encoder ')[2]}"
        return ModelError(f"{model.checkpoint}: COMET cannot load it: {reason}", hint=hint)
    return ResourceError(
        f"{python}: COMET failed: {reason}",
        hint="if memory ran out, use a smaller model or `--device cpu`",
    )


def _checked(python: str, table: dict[str, object], num_systems: int, lines: int) -> CometScores:
    """Return the scores of an answer, which must be numbers, one for each segment and system."""
    segments, systems = table.get("segments"), table.get("systems")
    version, uses = table.get("version"), table.get("uses_references")
    if not (isinstance(segments, list) and isinstance(systems, list) and isinstance(version, str)):
        raise _no_scores(python, "expected `segments`, `systems` and `version`")
    if [len(segments), len(systems)] != [num_systems] * 2:
        raise _no_scores(python, f"{len(systems)} systems, expected {num_systems}")
    for scores, mean in zip(segments, systems, strict=True):
        if not isinstance(scores, list) or len(scores) != lines:
            count = len(scores) if isinstance(scores, list) else "no"
            raise _no_scores(python, f"{count} scores for {lines} segments")
        for number, score in enumerate([*scores, mean], start=1):
            if not _is_number(score):
                what = f"segment {number}" if number <= lines else "the system"
                raise _no_scores(python, f"{what} has {_shown(json.dumps(score).encode())}")
        if not math.isclose(statistics.fmean(scores), mean, rel_tol=1e-3, abs_tol=1e-3):
            raise _no_scores(
                python, f"a score of {mean:.4f}, which is not the mean of its segments"
            )
    return CometScores(
        tuple(tuple(map(float, scores)) for scores in segments),
        tuple(map(float, systems)),
        one_line(version),
        uses is not False,
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _no_scores(python: str, found: str) -> ResourceError:
    return ResourceError(
        f"{python}: the process that computes COMET gave no valid scores: {found}",
        hint="is it a Python? is the model whole, and does `comet-score` work with it?",
    )


def _shown(content: bytes) -> str:
    """Return the beginning of an answer for a message."""
    if not content.strip():
        return "nothing"
    return f"`{one_line(content[:40].decode('utf-8', 'replace'))}`"


def _text(path: Path) -> str:
    """Return the text of a file, which may be missing or unusable; then it is empty."""
    try:
        return read_regular(path, max_bytes=_MAX_TEXT_BYTES).decode("utf-8", "replace")
    except (OSError, ValueError):
        return ""


def _value(yaml: str, key: str) -> str:
    """Return the plain value of a key at the margin of YAML; empty if there is none."""
    match = re.search(rf"^{key}:[ \t]*([^\s#].*)$", yaml, flags=re.MULTILINE)
    return one_line(match[1].strip().strip("'\"")) if match else ""
