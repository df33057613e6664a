"""What search gives back can be named where PyTorch is not installed."""

import subprocess
import sys


def test_hypotheses_need_no_pytorch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from tfm_cli.decoding.interface import Hypothesis, NonFiniteScoresError\n"
        "print(Hypothesis((1, 2), -1.0, -0.5).ids, NonFiniteScoresError())"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "(1, 2) the scores of the next token are not finite\n"
