"""The constants of DeepNorm, by which deep post-norm stacks train stably.

Source: Wang et al. 2022, arXiv:2203.00555, figure 2, encoder-decoder.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class DeepNorm:
    """The constants of a stack: LayerNorm(alpha * x + f(x)), and the gain of the initialization.

    Attributes:
        alpha: weight of the residual connection.
        beta: gain of the Glorot initialization of values, attention outputs and feed-forward
            layers; that of queries, keys and gates is 1.
    """

    alpha: float
    beta: float


def deepnorm(encoder_layers: int, decoder_layers: int) -> tuple[DeepNorm, DeepNorm]:
    """Return the constants of the encoder and the decoder of a model of this depth."""
    depth = (encoder_layers**4 * decoder_layers) ** (1 / 16)
    encoder = DeepNorm(alpha=0.81 * depth, beta=0.87 / depth)
    decoder = DeepNorm(alpha=(3 * decoder_layers) ** 0.25, beta=(12 * decoder_layers) ** -0.25)
    return encoder, decoder


def post_norm_weights(
    weights: Mapping[str, Tensor], encoder_layers: int, decoder_layers: int
) -> dict[str, Tensor]:
    """Return the weights of a post-norm Transformer that computes the same as one with DeepNorm.

    The last linear map of each sub-layer is divided by alpha; see `AddAndNorm`.

    Args:
        weights: of a Transformer with DeepNorm, by their names in its `state_dict`.
        encoder_layers: the depth of its encoder.
        decoder_layers: the depth of its decoder.
    """
    encoder, decoder = deepnorm(encoder_layers, decoder_layers)
    alphas = {"encoder_layers": encoder.alpha, "decoder_layers": decoder.alpha}
    divided = dict(weights)
    for name, values in weights.items():
        alpha = alphas.get(name.partition(".")[0])
        is_last = name.endswith(("attention.output.weight", "attention.output.bias"))
        is_last = is_last or name.endswith(("feed_forward.outer.weight", "feed_forward.outer.bias"))
        if alpha is not None and is_last:
            divided[name] = values / alpha
    return divided
