from pathlib import Path

import pytest

from tests.interop.random_models import lines, random_model
from tfm_cli.errors import ModelError
from tfm_cli.interop.ctranslate2 import write_ctranslate2
from tfm_cli.interop.verification.comparison import verify_quantized_ctranslate2


def test_quantized_weights_keep_most_translations(tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2", reason="pip install 'tfm-cli[ctranslate2]'")
    model = random_model()
    write_ctranslate2(tmp_path, model, quantization="float16")

    found = verify_quantized_ctranslate2(model, tmp_path, [*lines(20), ""])

    assert found.lines == 20
    assert 10 <= found.unchanged <= 20
    assert 0 < found.difference < 0.01


@pytest.mark.slow
def test_quantized_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2", reason="pip install 'tfm-cli[ctranslate2]'")
    write_ctranslate2(tmp_path, random_model(seed=2), quantization="int8")

    with pytest.raises(ModelError, match=r"log-probabilities differ by .+ on average"):
        verify_quantized_ctranslate2(random_model(seed=1), tmp_path, lines(20))
