"""The names of each tensor in other toolkits: one table for both import and export."""

# D model width, F inner width, V vocabulary

from collections.abc import Iterator
from dataclasses import dataclass

from tfm_cli.config.settings import ModelConfig


@dataclass(frozen=True, slots=True)
class TensorName:
    """The names of a tensor of tfm, or of some of its rows, in other toolkits.

    The query, key and value projections of an attention are one tensor of three parts, since other
    toolkits have a tensor for each. The gate and the linear half of SwiGLU are two parts. Parts
    that share a name in a toolkit form one tensor there, in the same order.
    """

    tfm: str
    part: int
    parts: int
    hugging_face: str | None  # in `MarianMTModel`; None if it has no such tensor
    marian: str | None  # in Marian's .npz, where matrices are transposed and vectors are (1, n)
    ctranslate2: str | None  # path in a `TransformerSpec`


def tensor_names(config: ModelConfig) -> list[TensorName]:
    """Return the names of every parameter of a Transformer of this shape, each part once."""
    names = [*_embeddings(config)]
    for side, depth in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        for index in range(depth):
            names += _layer(config, side, index)
        if config.norm == "pre":
            # Marian's suffix `_pre` is for norms before a sub-layer; this one follows the stack.
            names += _norm(f"{side}_norm", None, f"{side}_top", f"{side}/layer_norm", pre=False)
    if config.positions == "learned":
        for side, stack in (("source", "encoder"), ("target", "decoder")):
            path = f"{stack}/position_encodings/encodings"
            names.append(TensorName(f"{side}_positions.embedding.weight", 0, 1, None, None, path))
    return names


def _embeddings(config: ModelConfig) -> Iterator[TensorName]:
    source_is_tied, output_is_tied = config.tied_embeddings & 1, config.tied_embeddings & 2
    target = TensorName(
        "target_embedding.weight", 0, 1,
        "model.shared.weight" if source_is_tied else "model.decoder.embed_tokens.weight",
        "Wemb" if source_is_tied else "decoder_Wemb",
        "decoder/embeddings/weight",
    )  # fmt: skip
    yield target
    if not source_is_tied:
        source = "model.encoder.embed_tokens.weight"
        path = "encoder/embeddings_0/weight"
        yield TensorName("source_embedding.weight", 0, 1, source, "encoder_Wemb", path)
    if not output_is_tied:
        path = "decoder/projection/weight"
        yield TensorName("output.weight", 0, 1, "lm_head.weight", "decoder_ff_logit_out_Wt", path)
    if config.output_bias:
        path = "decoder/projection/bias"
        yield TensorName("output_bias", 0, 1, "final_logits_bias", "decoder_ff_logit_out_b", path)


def _layer(config: ModelConfig, side: str, index: int) -> Iterator[TensorName]:
    tfm, path = f"{side}_layers.{index}", f"{side}/layer_{index}"
    hf, marian = f"model.{side}.layers.{index}", f"{side}_l{index + 1}"
    is_pre = config.norm == "pre"

    yield from _attention(
        f"{tfm}.self_attention", f"{hf}.self_attn", f"{marian}_self", f"{path}/self_attention",
        fused=("qkv",), pre=is_pre,
    )  # fmt: skip
    if side == "decoder":
        yield from _attention(
            f"{tfm}.cross_attention", f"{hf}.encoder_attn", f"{marian}_context",
            f"{path}/attention", fused=("q", "kv"), pre=is_pre,
        )  # fmt: skip

    gates = 2 if config.activation == "swiglu" else 1
    for kind, letter in (("weight", "W"), ("bias", "b")):
        for part in range(gates):
            inner = f"{path}/ffn/linear_0" + ("_noact" if part else "")
            yield TensorName(
                f"{tfm}.feed_forward.inner.{kind}", part, gates,
                f"{hf}.fc1.{kind}" if gates == 1 else None,
                f"{marian}_ffn_{letter}1" if gates == 1 else None,
                f"{inner}/{kind}",
            )  # fmt: skip
        yield TensorName(
            f"{tfm}.feed_forward.outer.{kind}", 0, 1,
            f"{hf}.fc2.{kind}", f"{marian}_ffn_{letter}2", f"{path}/ffn/linear_1/{kind}",
        )  # fmt: skip
    yield from _norm(
        f"{tfm}.feed_forward_norm.norm", f"{hf}.final_layer_norm", f"{marian}_ffn_ffn",
        f"{path}/ffn/layer_norm", pre=is_pre,
    )  # fmt: skip


def _attention(
    tfm: str, hf: str, marian: str, path: str, *, fused: tuple[str, ...], pre: bool
) -> Iterator[TensorName]:
    for kind, letter in (("weight", "W"), ("bias", "b")):
        for part, role in enumerate("qkv"):
            group = next(i for i, roles in enumerate(fused) if role in roles)
            yield TensorName(
                f"{tfm}.projection.{kind}", part, 3,
                f"{hf}.{role}_proj.{kind}", f"{marian}_{letter}{role}",
                f"{path}/linear_{group}/{kind}",
            )  # fmt: skip
        yield TensorName(
            f"{tfm}.output.{kind}", 0, 1,
            f"{hf}.out_proj.{kind}", f"{marian}_{letter}o",
            f"{path}/linear_{len(fused)}/{kind}",
        )  # fmt: skip
    yield from _norm(
        f"{tfm}_norm.norm",
        f"{hf}_layer_norm",
        f"{marian}_Wo",
        f"{path}/layer_norm",
        pre=pre,
    )


def _norm(tfm: str, hf: str | None, marian: str, path: str, *, pre: bool) -> Iterator[TensorName]:
    suffix = "_pre" if pre else ""
    for kind, scale, gamma in (("weight", "scale", "gamma"), ("bias", "bias", "beta")):
        yield TensorName(
            f"{tfm}.{kind}", 0, 1,
            None if hf is None else f"{hf}.{kind}",
            f"{marian}_ln_{scale}{suffix}", f"{path}/{gamma}",
        )  # fmt: skip
