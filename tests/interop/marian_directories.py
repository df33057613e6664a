"""Directories in the formats of Hugging Face and Marian, with random weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.interop.random_models import random_tokenizers
from tfm_cli.interop.tensors import ImportedModel
from tfm_cli.model.transformer import Transformer
from tfm_cli.model_directory.weights import build_transformer
from tfm_cli.tokenizer.pair import TokenizerPair

# Marian's options as it writes them into a model; a test may override them.
MARIAN_OPTIONS = {
    "type": "transformer", "enc-depth": "2", "dec-depth": "2", "dim-emb": "16",
    "transformer-heads": "2", "transformer-dim-ffn": "24", "transformer-ffn-activation": "swish",
    "transformer-preprocess": '""', "transformer-postprocess": "dan",
    "transformer-postprocess-emb": "d", "transformer-postprocess-top": '""',
    "transformer-decoder-autoreg": "self-attention", "transformer-no-projection": "false",
    "transformer-ffn-depth": "2", "transformer-decoder-ffn-depth": "0",
    "transformer-decoder-dim-ffn": "0", "transformer-tied-layers": "[]",
    "transformer-train-position-embeddings": "false", "transformer-guided-alignment-layer": "last",
    "transformer-dim-aan": "2048", "transformer-aan-activation": "swish",
    "tied-embeddings": "false", "tied-embeddings-src": "false", "tied-embeddings-all": "true",
    "output-omit-bias": "false", "lemma-dim-emb": "0", "lemma-dependency": '""',
    "factors-combine": "sum", "factors-dim-emb": "0", "input-types": "[]", "right-left": "false",
    "ulr": "false", "ulr-dim-emb": "0", "dim-rnn": "1024", "version": "v1.12.42",
}  # fmt: skip
# Marian's names for the parts of a layer, by Hugging Face's.
_MARIAN_LAYER = {
    "self_attn": "self", "encoder_attn": "context", "fc1": "ffn_{}1", "fc2": "ffn_{}2",
    "self_attn_layer_norm": "self_Wo_ln_{}", "encoder_attn_layer_norm": "context_Wo_ln_{}",
    "final_layer_norm": "ffn_ffn_ln_{}",
}  # fmt: skip


def hugging_face_model(pair: TokenizerPair, *, seed: int = 1, **settings: Any) -> Any:
    """Return a random `MarianMTModel` for these tokenizers."""
    from transformers import MarianConfig, MarianMTModel

    source, target = pair.source, pair.target
    options: dict[str, Any] = {
        "vocab_size": source.vocab_size, "decoder_vocab_size": target.vocab_size, "d_model": 16,
        "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
        "activation_function": "swish", "scale_embedding": True, "max_position_embeddings": 64,
        "eos_token_id": target.eos_id, "forced_eos_token_id": target.eos_id,
        "decoder_start_token_id": target.start_id,
        "pad_token_id": target.start_id if pair.shares_vocabulary else target.eos_id,
        "share_encoder_decoder_embeddings": pair.shares_vocabulary, "tie_word_embeddings": True,
        "attn_implementation": "eager", **settings,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = MarianMTModel(MarianConfig(**options))
        model.eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "embed_positions" in name:
                    continue
                if "embed_tokens" in name or "shared" in name or "lm_head" in name:
                    parameter.normal_(std=parameter.shape[1] ** -0.5)
                elif parameter.dim() == 2:
                    parameter.normal_(std=1.5 * parameter.shape[1] ** -0.5)
                elif "layer_norm.weight" in name:
                    parameter.uniform_(0.6, 1.4)
                else:
                    parameter.normal_(std=0.3)
            model.final_logits_bias.normal_(std=0.5)
            if options["share_encoder_decoder_embeddings"]:
                shared = model.model.shared.weight
                for side in (model.model.encoder, model.model.decoder):
                    side.embed_tokens.weight.copy_(shared)
    return model


def write_hugging_face_directory(
    directory: Path, model: Any, pair: TokenizerPair, **generation: Any
) -> Path:
    """Save a model, its tokenizers and its generation config, as on the Hub."""
    directory.mkdir(parents=True, exist_ok=True)
    model.generation_config.update(**generation)
    model.save_pretrained(directory)
    (directory / "source.spm").write_bytes(pair.source.model_bytes)
    (directory / "target.spm").write_bytes(pair.target.model_bytes)
    write_json(directory / "vocab.json", ids(pair.source.pieces))
    settings: dict[str, Any] = {"tokenizer_class": "MarianTokenizer", "model_max_length": 512}
    if not pair.shares_vocabulary:
        write_json(directory / "target_vocab.json", ids(pair.target.pieces))
        settings["separate_vocabs"] = True
    if model.config.pad_token_id == pair.target.eos_id:
        settings["pad_token"] = "</s>"
    write_json(directory / "tokenizer_config.json", settings)
    return directory


def ids(pieces: tuple[str, ...]) -> dict[str, int]:
    """Return the pieces with their ids, as in `vocab.json`."""
    return {piece: index for index, piece in enumerate(pieces)}


def write_json(path: Path, table: Mapping[str, Any]) -> None:
    """A JSON file."""
    path.write_text(json.dumps(table), encoding="utf-8")


def changed_json(path: Path, **changes: Any) -> None:
    """Set values in a JSON file; None removes one."""
    table = json.loads(path.read_text(encoding="utf-8")) | changes
    write_json(path, {name: value for name, value in table.items() if value is not None})


def marian_arrays(model: Any) -> dict[str, np.ndarray]:
    """Return the weights of a `MarianMTModel` under Marian's names, without the row of `<pad>`."""
    arrays = {}
    config, state = model.config, model.state_dict()
    for name, tensor in state.items():
        value = tensor.numpy()
        path = name.split(".")
        if "embed_positions" in name:
            continue
        if "layers" in path:
            arrays[_layer_name(path)] = value[None] if value.ndim == 1 else value.T
    bias = state["final_logits_bias"].numpy()[:, :-1]
    arrays["decoder_ff_logit_out_b"] = bias
    embeddings = {
        side: state[f"model.{side}.embed_tokens.weight"].numpy()[:-1]
        for side in ("encoder", "decoder")
    }
    if config.share_encoder_decoder_embeddings:
        arrays["Wemb"] = embeddings["decoder"]
    else:
        arrays |= {f"{side}_Wemb": value for side, value in embeddings.items()}
    if not config.tie_word_embeddings:
        arrays["decoder_ff_logit_out_Wt"] = state["lm_head.weight"].numpy()[:-1]
    return {name: np.ascontiguousarray(value) for name, value in arrays.items()}


def _layer_name(path: list[str]) -> str:
    _, side, _, index, part, *rest = path
    letter = {"weight": "W", "bias": "b"}[rest[-1]]
    kind = {"weight": "scale", "bias": "bias"}[rest[-1]]
    name = _MARIAN_LAYER[part].format(kind if "norm" in part else letter)
    if len(rest) == 2:  # a projection of an attention
        name += f"_{letter}{rest[0][0]}"
    return f"{side}_l{int(index) + 1}_{name}"


def write_marian_directory(
    directory: Path,
    arrays: Mapping[str, np.ndarray],
    pair: TokenizerPair,
    *,
    decoder: Mapping[str, str] | None = None,
    **options: Any,
) -> Path:
    """Write a directory as OPUS-MT distributes it; underscores in options become hyphens."""
    directory.mkdir(parents=True, exist_ok=True)
    sides = {"source": pair.source, "target": pair.target}
    sizes = ", ".join(str(side.vocab_size - 1) for side in sides.values())
    table = MARIAN_OPTIONS | {"dim-vocabs": f"[{sizes}]"}
    table |= {name.replace("_", "-"): value for name, value in options.items()}
    text = "".join(f"{name}: {value}\n" for name, value in table.items()).encode() + b"\0"
    special = {"special:model.yml": np.frombuffer(text, dtype=np.int8)}
    np.savez(directory / "model.npz", **{**arrays, **special})  # type: ignore[arg-type]
    names = []
    for name, side in sides.items():
        file = "opus.vocab.yml" if pair.shares_vocabulary else f"{name}.vocab.yml"
        names.append(file)
        entries = [f"{json.dumps(p, ensure_ascii=False)}: {i}\n"
                   for i, p in enumerate(side.pieces[:-1])]  # fmt: skip
        (directory / file).write_text("".join(entries), encoding="utf-8")
        (directory / f"{name}.spm").write_bytes(side.model_bytes)
    settings = {
        "relative-paths": "true", "models": "[model.npz]", "vocabs": f"[{', '.join(names)}]",
        "beam-size": "6", "normalize": "0.6", "word-penalty": "0", **(decoder or {}),
    }  # fmt: skip
    lines = [f"{name}: {value}\n" for name, value in settings.items()]
    (directory / "decoder.yml").write_text("".join(lines), encoding="utf-8")
    return directory


def without_padding_row(model: Any) -> None:
    """Make the last piece of a `MarianMTModel` the zero vector that Marian starts from."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Embedding) and "Sinusoidal" not in type(module).__name__:
                module.weight[-1] = 0


def marian_model(kind: str = "shared", **settings: Any) -> tuple[Any, TokenizerPair]:
    """Return a random `MarianMTModel` that starts from a zero vector, as Marian does."""
    pair = random_tokenizers(kind)
    model = hugging_face_model(pair, **settings)
    without_padding_row(model)
    return model, pair


def transformer_of(imported: ImportedModel) -> Transformer:
    """Return the Transformer of an imported model, in evaluation mode."""
    model = build_transformer(imported.config.model, imported.tokenizers.vocab_sizes)
    model.load_state_dict(imported.weights)
    return model.eval()
