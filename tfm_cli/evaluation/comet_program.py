"""The program that computes COMET's scores; the Python that has `unbabel-comet` runs this file.

It imports nothing from tfm and runs on Python 3.8 or newer. Standard input is JSON, a value a line:
a request, then the segments of each system. The answer is one JSON object on standard output.
"""

import importlib
import inspect
import json
import math
import os
import sys
import threading
import time
from typing import Any


def main() -> int:
    """Answer the request on standard input; return the exit code."""
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    systems = [
        [json.loads(sys.stdin.readline()) for _ in range(request["lines"])]
        for _ in range(request["systems"])
    ]
    # Libraries print to standard output too, which is for the answer.
    with os.fdopen(os.dup(1), "w", encoding="ascii") as answers:
        os.dup2(2, 1)
        json.dump(_answer(request, systems), answers)
    return 0


def _answer(request: Any, systems: Any) -> Any:
    """Return the scores, or the step that failed and the reason."""
    step = "import"
    try:
        comet = importlib.import_module("comet")
        torch = importlib.import_module("torch")
        try:
            version = importlib.import_module("importlib.metadata").version("unbabel-comet")
        except ImportError:  # PackageNotFoundError is one
            version = str(getattr(comet, "__version__", "unknown"))
        step = "load"
        options = {}
        if "local_files_only" in inspect.signature(comet.load_from_checkpoint).parameters:
            options["local_files_only"] = True  # older versions lack it
        model = comet.load_from_checkpoint(request["checkpoint"], **options)
        step = "predict"
        gpus = request["gpus"]
        if gpus is None:
            gpus = int(torch.cuda.is_available())
        found = [
            model.predict(samples, batch_size=16, gpus=gpus, progress_bar=request["progress"])
            for samples in systems
        ]
        needs = getattr(model, "requires_references", None)
        return {
            "version": version,
            "uses_references": bool(needs()) if needs is not None else True,
            "segments": [[_number(score) for score in each.scores] for each in found],
            "systems": [_number(each.system_score) for each in found],
        }
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return {"failed": step, "reason": reason, "module": str(getattr(error, "name", ""))}


def _number(value: Any) -> Any:
    """Return a number for JSON, which has no NaN; text stands for it."""
    return float(value) if math.isfinite(value) else str(float(value))


def _end_with(parent: int) -> None:
    """End this process when its parent has ended, however that ended."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    raise SystemExit(main())
