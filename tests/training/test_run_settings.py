"""The choice of preset `auto`, as it is logged."""

import pytest

from tfm_cli.config.presets import CPU_RECIPES
from tfm_cli.config.settings import ModelConfig, RunConfig, TokenizerConfig, TrainingConfig
from tfm_cli.training.run_settings import Choice


@pytest.mark.parametrize(
    ("tokenizer", "shown"), [("", "vocab_size 2000, "), ("m.model", "")], ids=["new", "given"]
)
def test_choice_is_shown_with_the_values_that_the_run_has(tokenizer: str, shown: str) -> None:
    config = RunConfig(
        tokenizer=TokenizerConfig(vocab_size=2000, model=tokenizer),
        model=ModelConfig(dropout=0.25),
        training=TrainingConfig(max_tokens=512, lr_warmup=7),
    )

    assert Choice(CPU_RECIPES[0], "1 pair", "CPU").lines(config) == [
        f"preset auto: `tiny` with {shown}dropout 0.25, max_tokens 512, lr_warmup 7",
        f"for 1 pair on a CPU: {CPU_RECIPES[0].reason}",
    ]
