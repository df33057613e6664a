"""A Python environment with a package that has the interface of `unbabel-comet` 2, for tests.

COMET itself has models of gigabytes, which are pickles. The checkpoint of this one is JSON that
orders a behavior. A score is the share of the reference's words that the hypothesis has, plus a
tenth if the source is not blank.
"""

import venv
from pathlib import Path

VERSION = "2.2.6"

_PACKAGE = """
import json, os, sys, time
from pathlib import Path

print("comet prints when it is imported")


class Prediction(dict):
    def __getattr__(self, name):
        return self[name]


class Model:
    def __init__(self, orders):
        self.orders = orders

    def requires_references(self):
        return self.orders.get("references", True)

    def predict(self, samples, batch_size=16, gpus=1, devices=None, mc_dropout=0,
                progress_bar=True, accelerator="auto", num_workers=None, length_batching=True):
        print("GPU available: False", batch_size, gpus, progress_bar)
        order = self.orders.get("predict")
        if order == "exit":
            print("out of patience", file=sys.stderr)
            os._exit(3)
        if order == "kill":
            os.kill(os.getpid(), 9)
        if order == "raise":
            raise RuntimeError("CUDA out of memory")
        if order == "hang":
            Path(self.orders["pid"]).write_text(str(os.getpid()))
            time.sleep(60)
        scores = []
        for sample in samples:
            words = sample["ref"].split()
            share = sum(word in sample["mt"].split() for word in words) / max(1, len(words))
            scores.append(share + 0.1 * bool(sample["src"].strip()))
        if order == "nan":
            scores[1] = float("nan")
        if order == "short":
            scores.pop()
        mean = sum(scores) / len(scores) + (0.5 if order == "mean" else 0)
        return Prediction(scores=scores, system_score=mean)


def load_from_checkpoint(checkpoint_path, reload_hparams=False, strict=False,
                         local_files_only=False):
    path = Path(checkpoint_path)
    if not (path.parents[1] / "hparams.yaml").is_file():
        raise Exception("hparams.yaml file is missing")
    assert local_files_only and os.environ["HF_HUB_OFFLINE"] == "1"
    orders = json.loads(path.read_text())
    if orders.get("load"):
        raise OSError(orders["load"])
    return Model(orders)
"""
_TORCH = "class cuda:\n    is_available = staticmethod(lambda: False)\n"
_CARD = "---\nlanguage:\n- multilingual\nlicense: apache-2.0\n---\n\nA model.\n"


def environment(folder: Path, *, package: str = _PACKAGE) -> Path:
    """Create an environment with the package, and return its interpreter."""
    venv.create(folder, symlinks=True, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    for name, text in (("comet", package), ("torch", _TORCH)):
        (site / name).mkdir()
        (site / name / "__init__.py").write_text(text)
    (site / f"unbabel_comet-{VERSION}.dist-info").mkdir()
    metadata = f"Metadata-Version: 2.1\nName: unbabel-comet\nVersion: {VERSION}\n"
    (site / f"unbabel_comet-{VERSION}.dist-info" / "METADATA").write_text(metadata)
    return folder / "bin" / "python"


def model(folder: Path, orders: str = "{}") -> Path:
    """Create a model directory whose checkpoint has these orders, and return it."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "model.ckpt").write_text(orders)
    settings = "class_identifier: regression_metric\npretrained_model: xlm-roberta-large\n"
    (folder / "hparams.yaml").write_text(settings)
    (folder / "README.md").write_text(_CARD)
    return folder


def score(source: str, hypothesis: str, reference: str) -> float:
    """Return the score that the package gives a segment."""
    words = reference.split()
    found = [word for word in words if word in hypothesis.split()]
    return len(found) / max(1, len(words)) + (0.1 if source.strip() else 0)
