"""The README.md of a trained model: what it is, what it learned from, how good it is."""

import time
from collections.abc import Sequence

import tfm_cli
from tfm_cli.config import RunConfig
from tfm_cli.evaluation.scores import Score
from tfm_cli.log import seconds_text
from tfm_cli.markdown import code, plain
from tfm_cli.training.state import TrainState


def model_card(
    config: RunConfig,
    state: TrainState,
    *,
    arithmetic: str,
    num_parameters: int,
    vocab_sizes: tuple[int, int],
    num_pairs: int,
    dropped: dict[str, int],
    update: int,
    values: dict[str, float],
    scores: Sequence[Score],
) -> str:
    """Return Markdown that answers what a reader of the model's folder would ask first.

    `arithmetic` names the precision and the kind of device that the run computes with.
    """
    model, data = config.model, config.data
    corpus = (
        ", ".join(data.source + data.target + data.pairs) or "the sample corpus of tfm (generated)"
    )
    left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()) if count)
    rows = [
        ("training text", corpus),
        ("pairs", f"{num_pairs}" + (f" (left out: {left_out})" if left_out else "")),
        ("shape", f"{model.encoder_layers}+{model.decoder_layers} layers, width {model.width}, "
                  f"{_both(model.encoder.heads, model.decoder.heads)} heads, feed-forward "
                  f"{_both(model.encoder.feed_forward_width, model.decoder.feed_forward_width)}, "
                  f"{model.norm}-norm, {model.positions} positions, {model.activation}"),
        ("parameters", f"{num_parameters:,}"),
        ("pieces", " + ".join(f"{size:,}" for size in dict.fromkeys(vocab_sizes))),
        ("trained", f"{state.update} updates, {state.target_pieces:,} target pieces, "
                    f"{seconds_text(state.train_seconds)}"),
        ("arithmetic", arithmetic),
        ("these weights", f"after update {update}"
                          + (f", moving average {config.training.ema_decay}"
                             if config.training.ema_decay else "")),
        ("date", time.strftime("%Y-%m-%d")),
        ("made by", f"tfm {tfm_cli.__version__}"),
    ]  # fmt: skip
    lines = ["# A translation model", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {plain(value)} |" for name, value in rows]
    if values:
        beam = config.validation.beam_size
        lines += ["", f"## Scores on the validation text (beam {beam})", ""]
        lines += ["| metric | value | signature |", "|---|---|---|"]
        signatures = {score.name.lower(): score.signature for score in scores}
        for name, value in values.items():
            signature = next((s for n, s in signatures.items() if n.startswith(name)), "")
            lines.append(f"| {name} | {value:.2f} | {code(signature)} |" if signature
                         else f"| {name} | {value:.4f} | nats per target piece |")  # fmt: skip
    lines += ["", "## Use", "", "```", "tfm translate --model . < source.txt", "```", ""]
    lines += ["All settings are in `config.json`."]
    return "\n".join(lines) + "\n"


def _both(encoder: int, decoder: int) -> str:
    return str(encoder) if encoder == decoder else f"{encoder}+{decoder}"
