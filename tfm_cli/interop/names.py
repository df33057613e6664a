"""What each tensor of a model is called elsewhere: one table, read in both directions."""

# D model width, F inner width, V vocabulary

from collections.abc import Iterator
from dataclasses import dataclass

from tfm_cli.config.settings import ModelConfig


@dataclass(frozen=True, slots=True)
class Name:
    """A tensor of ours, or some of its rows, and its names in the formats that have it.

    Where the attention's query, key and value are three tensors elsewhere, they are three parts
    of one of ours, row after row; so are the gate and the linear part of SwiGLU. Where several
    parts have the same name elsewhere, they are one tensor there, too, in the same order.
    """

    ours: str
    part: int
    parts: int
    hugging_face: str | None  # `MarianMTModel`; None where Marian there has no such tensor
    marian: str | None  # Marian's .npz; matrices stand there transposed, vectors as (1, n)
    ctranslate2: str | None  # path in a `TransformerSpec`


def names(config: ModelConfig) -> list[Name]:
    """The name of every parameter that a Transformer of this shape has, each part once."""
    found = [*_embeddings(config)]
    for side, depth in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        for index in range(depth):
            found += _layer(config, side, index)
        if config.norm == "pre":
            # Marian names what comes before a sub-layer `_pre`; this one comes after the stack.
            found += _norm(f"{side}_norm", None, f"{side}_top", f"{side}/layer_norm", pre=False)
    if config.positions == "learned":
        for ours, side in (("source", "encoder"), ("target", "decoder")):
            path = f"{side}/position_encodings/encodings"
            found.append(Name(f"{ours}_positions.embedding.weight", 0, 1, None, None, path))
    return found


def _embeddings(config: ModelConfig) -> Iterator[Name]:
    source_is_tied, output_is_tied = config.tied_embeddings & 1, config.tied_embeddings & 2
    target = Name(
        "target_embedding.weight", 0, 1,
        "model.shared.weight" if source_is_tied else "model.decoder.embed_tokens.weight",
        "Wemb" if source_is_tied else "decoder_Wemb",
        "decoder/embeddings/weight",
    )  # fmt: skip
    yield target
    if not source_is_tied:
        source = "model.encoder.embed_tokens.weight"
        path = "encoder/embeddings_0/weight"
        yield Name("source_embedding.weight", 0, 1, source, "encoder_Wemb", path)
    if not output_is_tied:
        path = "decoder/projection/weight"
        yield Name("output.weight", 0, 1, "lm_head.weight", "decoder_ff_logit_out_Wt", path)
    if config.output_bias:
        path = "decoder/projection/bias"
        yield Name("output_bias", 0, 1, "final_logits_bias", "decoder_ff_logit_out_b", path)


def _layer(config: ModelConfig, side: str, index: int) -> Iterator[Name]:
    ours, path = f"{side}_layers.{index}", f"{side}/layer_{index}"
    theirs, marian = f"model.{side}.layers.{index}", f"{side}_l{index + 1}"
    is_pre = config.norm == "pre"

    yield from _attention(
        f"{ours}.self_attention", f"{theirs}.self_attn", f"{marian}_self", f"{path}/self_attention",
        fused=("qkv",), pre=is_pre,
    )  # fmt: skip
    if side == "decoder":
        yield from _attention(
            f"{ours}.cross_attention", f"{theirs}.encoder_attn", f"{marian}_context",
            f"{path}/attention", fused=("q", "kv"), pre=is_pre,
        )  # fmt: skip

    gates = 2 if config.activation == "swiglu" else 1
    for kind, letter in (("weight", "W"), ("bias", "b")):
        for part in range(gates):
            inner = f"{path}/ffn/linear_0" + ("_noact" if part else "")
            yield Name(
                f"{ours}.feed_forward.inner.{kind}", part, gates,
                f"{theirs}.fc1.{kind}" if gates == 1 else None,
                f"{marian}_ffn_{letter}1" if gates == 1 else None,
                f"{inner}/{kind}",
            )  # fmt: skip
        yield Name(
            f"{ours}.feed_forward.outer.{kind}", 0, 1,
            f"{theirs}.fc2.{kind}", f"{marian}_ffn_{letter}2", f"{path}/ffn/linear_1/{kind}",
        )  # fmt: skip
    yield from _norm(
        f"{ours}.feed_forward_norm.norm", f"{theirs}.final_layer_norm", f"{marian}_ffn_ffn",
        f"{path}/ffn/layer_norm", pre=is_pre,
    )  # fmt: skip


def _attention(
    ours: str, theirs: str, marian: str, path: str, *, fused: tuple[str, ...], pre: bool
) -> Iterator[Name]:
    for kind, letter in (("weight", "W"), ("bias", "b")):
        for part, role in enumerate("qkv"):
            group = next(i for i, roles in enumerate(fused) if role in roles)
            yield Name(
                f"{ours}.projection.{kind}", part, 3,
                f"{theirs}.{role}_proj.{kind}", f"{marian}_{letter}{role}",
                f"{path}/linear_{group}/{kind}",
            )  # fmt: skip
        yield Name(
            f"{ours}.output.{kind}", 0, 1,
            f"{theirs}.out_proj.{kind}", f"{marian}_{letter}o",
            f"{path}/linear_{len(fused)}/{kind}",
        )  # fmt: skip
    yield from _norm(
        f"{ours}_norm.norm", f"{theirs}_layer_norm", f"{marian}_Wo", f"{path}/layer_norm", pre=pre
    )


def _norm(ours: str, theirs: str | None, marian: str, path: str, *, pre: bool) -> Iterator[Name]:
    suffix = "_pre" if pre else ""
    for kind, scale, gamma in (("weight", "scale", "gamma"), ("bias", "bias", "beta")):
        yield Name(
            f"{ours}.{kind}", 0, 1,
            None if theirs is None else f"{theirs}.{kind}",
            f"{marian}_ln_{scale}{suffix}", f"{path}/{gamma}",
        )  # fmt: skip
