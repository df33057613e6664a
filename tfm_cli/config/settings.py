"""All settings: name, type, default, bounds and help of each, in one place.

TOML files and `--set` are checked against them, and the flags of the commands and their help are
generated from them. The resolved settings are saved with each model.
"""

import dataclasses
from dataclasses import Field, FrozenInstanceError, dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar, dataclass_transform

from tfm_cli.device import TRAINING_PRECISIONS

# The largest count: beyond any in practice, and far from overflow of 64 bits.
MAX_COUNT = 10**12

# Learning-rate schedules.
INVERSE_SQRT = "inverse-sqrt"
WARMUP_STABLE_DECAY = "warmup-stable-decay"
SCHEDULES = (INVERSE_SQRT, "linear", "cosine", WARMUP_STABLE_DECAY)

Value = bool | int | float | str | tuple[str, ...] | tuple[float, ...]


def opt(
    default: Value,
    help_text: str,
    *,
    ge: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: tuple[Value, ...] | None = None,
    may_change: bool | Literal["to auto", "on request"] = False,
    legacy_default: Value | None = None,
) -> Any:
    """Return the field of a section.

    Args:
        default: the built-in default, which a preset, file, `--set` or flag replaces.
        help_text: one sentence or more, also the help of the flag.
        ge: lower bound.
        le: upper bound.
        lt: upper bound, itself not allowed.
        choices: the allowed values; None for any.
        may_change: True if a resumed run may have another value, because no result so far depends
            on it. `to auto` if the run resolved `auto` and saved the result, which it keeps. `on
            request` if it may change with `--allow-change`: the next updates depend on it.
        legacy_default: the value in models and runs of formats before 3, which lack the setting.
    """
    metadata = {
        "help": help_text, "ge": ge, "le": le, "lt": lt, "choices": choices,
        "may_change": may_change, "legacy_default": legacy_default,
    }  # fmt: skip
    return field(default=default, metadata=metadata)


class Section:
    """The base of sections: frozen records of settings with equality by value.

    `dataclass` would generate and compile these methods for each class, which takes a tenth of the
    time of translating one line; here all classes share them.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __init__(self, **values: Any) -> None:
        known = self.__dataclass_fields__
        if unknown := values.keys() - known.keys():
            raise TypeError(f"{type(self).__name__} has no setting {', '.join(sorted(unknown))}")
        self.__dict__.update({name: field.default for name, field in known.items()} | values)
        self._normalize()

    def _normalize(self) -> None:
        """Give equal settings equal representations."""

    def __setattr__(self, name: str, value: object) -> None:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__.values()))

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in self.__dict__.items())
        return f"{type(self).__name__}({values})"


_SectionType = TypeVar("_SectionType", bound=type[Section])


@dataclass_transform(kw_only_default=True, frozen_default=True)
def section(kind: _SectionType) -> _SectionType:
    """Turn a class into a section, whose fields are its annotated attributes."""
    dataclass(init=False, repr=False, eq=False)(kind)  # in place
    return kind


@section
class SearchConfig(Section):
    """Settings of the search for translations."""

    beam_size: int = opt(
        4, "Hypotheses kept for each segment; 1 is greedy search.", ge=1, le=256, may_change=True
    )
    length_penalty: float = opt(
        1.0, "Exponent of the length normalization; 0 disables it.", ge=0, le=10
    )
    length_norm: str = opt(
        "power",
        "Base of that power, for n tokens: n (power), or (5 + n) / 6 (wu; Wu et al. 2016).",
        choices=("power", "wu"),
    )
    early_stopping: bool = opt(
        False,
        "Stop once beam-size hypotheses are finished; otherwise continue while an unfinished one "
        "may still score higher than the worst of them.",
    )
    renormalize: bool = opt(
        False,
        "Renormalize probabilities over the tokens that may be generated.",
    )
    n_best: int = opt(
        1,
        "Translations written for each line, all different and at most the beam size; with "
        "sampling, the number of samples.",
        ge=1,
        le=256,
        may_change=True,
    )
    no_repeat_ngram_size: int = opt(
        0,
        "Generate no n-gram of this length twice in a translation; 0 allows repetition.",
        ge=0,
        le=256,
    )
    repetition_penalty: float = opt(
        1.0,
        "Divide the positive logits of tokens already generated by this number, and multiply the "
        "negative ones; 1 disables it (Keskar et al. 2019).",
        ge=0.01,
        le=1000,
    )
    max_length: int = opt(256, "Maximum number of source tokens in a segment.", ge=2, le=1_000_000)
    max_length_factor: float = opt(
        3.0,
        "Maximum number of target tokens for each source token, plus 10.",
        ge=0.001,
        le=1000,
    )
    max_tokens: int = opt(
        4096,
        "Maximum size of a batch: source tokens times the beam size.",
        ge=1,
        le=MAX_COUNT,
        may_change=True,
    )
    buffer_size: int = opt(
        4096,
        "Lines read ahead, sorted by length and translated together.",
        ge=1,
        le=MAX_COUNT,
        may_change=True,
    )
    top_k: int = opt(
        0,
        "Sample from this many most probable tokens; 0 for all.",
        ge=0,
        le=MAX_COUNT,
        may_change=True,
    )
    top_p: float = opt(
        1.0,
        "Sample from the most probable tokens with this total mass.",
        ge=1e-6,
        le=1,
        may_change=True,
    )
    temperature: float = opt(
        1.0, "Divide the logits by this number before sampling.", ge=1e-6, le=1000, may_change=True
    )
    seed: int = opt(1, "Seed of the sampling.", ge=0, lt=2**31, may_change=True)


# SentencePiece's names of the rules that normalize text before it is tokenized.
NORMALIZATION_RULES = ("identity", "nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf")

# sacreBLEU's tokenizers of BLEU, as of its version 2.6.
BLEU_TOKENIZERS = (
    "none", "zh", "13a", "intl", "char", "ja-mecab", "ko-mecab", "spm", "flores101", "flores200",
    "spBLEU-1K",
)  # fmt: skip


@section
class DataConfig(Section):
    """Settings of the training and validation text."""

    # Files may be moved: a checkpoint identifies their content by its hash.
    source: tuple[str, ...] = opt(
        (), "Training text in the source language, plain, .gz, .zst or .xz.", may_change=True
    )
    target: tuple[str, ...] = opt(
        (), "Training text in the target language, line by line.", may_change=True
    )
    valid_source: tuple[str, ...] = opt(
        (), "Validation text in the source language.", may_change=True
    )
    valid_target: tuple[str, ...] = opt(
        (), "Validation text in the target language, line by line.", may_change=True
    )
    pairs: tuple[str, ...] = opt(
        (),
        "Training text with both sides in one file, source<TAB>target (.tsv) or JSON lines with "
        "`source` and `target` (.jsonl); `-` is standard input.",
        may_change=True,
    )
    pairs_format: str = opt(
        "auto",
        "Format of the files of pairs; auto depends on the suffix of the name.",
        choices=("auto", "tsv", "jsonl"),
        may_change=True,
    )
    weights: tuple[float, ...] = opt(
        (),
        "Passes over each training file in an epoch, in the order of the files; by default 1.",
        ge=1e-12,
        le=100,
    )
    tags: tuple[str, ...] = opt(
        (),
        "Language tags, such as `>>fra<<`, at the start of source lines, each of which becomes one "
        "token of a new tokenizer. By default those in the text, if a tenth of its lines begin "
        "with one; `none` treats them as text.",
    )
    max_length: int = opt(
        256,
        "Skip and count training pairs with more tokens than this on either side.",
        ge=2,
        le=1_000_000,
    )
    max_ratio: float = opt(
        0.0,
        "Skip training pairs of which one side has more than this many times the tokens of the "
        "other; 0 for no limit.",
        ge=0,
        le=1_000_000,
    )
    drop_identical: bool = opt(False, "Skip training pairs with the same text on both sides.")
    drop_duplicates: bool = opt(False, "Skip repeated training pairs.")
    drop_bad_characters: bool = opt(
        False,
        "Skip training pairs with control or private-use characters, U+FFFD, U+FEFF, "
        "noncharacters or line separators.",
    )
    subword_sampling: str = opt(
        "none",
        "Subword regularization: cut the words of these sides at random in each epoch. A unigram "
        "tokenizer samples among all segmentations of a word, a bpe tokenizer skips merges "
        "(BPE-dropout).",
        choices=("none", "source", "target", "both"),
    )
    subword_alpha: float = opt(
        0.0,
        "With unigram, the exponent of the probabilities of segmentations: a smaller one gives "
        "more and shorter tokens. With bpe, the share of merges that are skipped. 0 is the "
        "default, 0.2 with unigram and 0.1 with bpe.",
        ge=0,
        le=1,
    )
    bad_utf8: str = opt(
        "refuse",
        "Refuse training text that is not UTF-8, replace it by U+FFFD, or drop its pair.",
        choices=("refuse", "replace", "drop-pair"),
    )
    cache: str = opt(
        "",
        "Directory for prepared training text; by default `corpus` in the model directory.",
        may_change=True,
    )
    workers: int = opt(
        0,
        "Processes that prepare the training text; 0 starts one for each core.",
        ge=0,
        le=1024,
        may_change=True,
    )


@section
class TokenizerConfig(Section):
    """Settings of the tokenizer, with the names of SentencePiece."""

    model: str = opt("", "SentencePiece model to use; by default one is trained on the corpus.")
    vocab_size: int = opt(8000, "Number of tokens in the vocabulary.", ge=8, le=1_000_000)
    model_type: str = opt(
        "unigram", "Type of subword model.", choices=("unigram", "bpe", "char", "word")
    )
    character_coverage: float = opt(
        0.9995, "Share of the characters in the text that become tokens.", ge=0.001, le=1
    )
    input_sentence_size: int = opt(
        1_000_000,
        "Lines on which the tokenizer is trained, drawn at random; they bound the memory.",
        ge=1,
        le=MAX_COUNT,
    )
    normalization_rule_name: str = opt(
        "identity",
        "Normalization of text before it is tokenized, and therefore of translations too: identity "
        "(none), nfkc, nmt_nfkc, nfkc_cf, nmt_nfkc_cf (cf folds case), or a .tsv file of rules, "
        "with which the tokenizer takes up to a second longer to load.",
        legacy_default="nmt_nfkc",
    )
    byte_fallback: bool = opt(True, "Spell unknown characters as UTF-8 bytes.")
    joint: bool = opt(True, "Train one tokenizer for both languages, not one each.")


class StackShape(NamedTuple):
    """The shape of the encoder or of the decoder."""

    layers: int
    heads: int
    feed_forward_width: int


# The settings of a model that matter in training only.
DROPOUT_SETTINGS = ("dropout", "attention_dropout", "activation_dropout", "word_dropout")


@section
class ModelConfig(Section):
    """Shape of the Transformer; the defaults are the base model of Vaswani et al. 2017."""

    encoder_layers: int = opt(6, "Encoder layers.", ge=1, le=128)
    decoder_layers: int = opt(6, "Decoder layers.", ge=1, le=128)
    width: int = opt(512, "Width of embeddings and layers (d_model).", ge=2, le=16384)
    heads: int = opt(8, "Attention heads; must divide the width.", ge=1, le=256)
    feed_forward_width: int = opt(
        2048, "Inner width of the feed-forward layers (d_ff).", ge=1, le=65536
    )
    decoder_heads: int = opt(0, "Attention heads of the decoder; 0 for `heads`.", ge=0, le=256)
    decoder_feed_forward_width: int = opt(
        0,
        "Inner width of the decoder's feed-forward layers; 0 for `feed_forward_width`.",
        ge=0,
        le=65536,
    )
    dropout: float = opt(
        0.1,
        "Dropout on embeddings and on the output of each sub-layer.",
        ge=0,
        lt=1,
        may_change="on request",
    )
    attention_dropout: float = opt(
        0.0, "Dropout on attention weights.", ge=0, lt=1, may_change="on request"
    )
    activation_dropout: float = opt(
        0.0,
        "Dropout after the activation of each feed-forward layer.",
        ge=0,
        lt=1,
        may_change="on request",
    )
    word_dropout: float = opt(
        0.0,
        "Dropout of whole embeddings: the share of source and target tokens that the model does "
        "not see in training.",
        ge=0,
        lt=1,
        may_change="on request",
    )
    norm: str = opt(
        "post",
        "Layer norm after each residual sub-layer (post), or before it (pre); deepnorm is post "
        "for deep stacks, with a scaled residual connection and initialization.",
        choices=("post", "pre", "deepnorm"),
    )
    positions: str = opt(
        "sinusoidal",
        "Positions: the paper's sinusoids or two other layouts of them, learned, or rotary.",
        choices=("sinusoidal", "sinusoidal_halves", "sinusoidal_marian", "learned", "rotary"),
    )
    max_positions: int = opt(
        1024, "Number of learned positions, the maximum length of a segment.", ge=2, le=1_000_000
    )
    activation: str = opt(
        "relu",
        "Activation of the feed-forward layers; swiglu is gated.",
        choices=("relu", "gelu", "swish", "swiglu"),
    )
    tied_embeddings: int = opt(
        3,
        "Tied embedding matrices: 3 source, target and output; 2 target and output; 1 source and "
        "target; 0 none.",
        choices=(0, 1, 2, 3),
    )
    scale_embeddings: bool = opt(True, "Multiply embeddings by the square root of the width.")
    output_bias: bool = opt(False, "Learn a bias for each logit.")

    def _normalize(self) -> None:
        if self.decoder_heads == self.heads:
            self.__dict__["decoder_heads"] = 0
        if self.decoder_feed_forward_width == self.feed_forward_width:
            self.__dict__["decoder_feed_forward_width"] = 0

    @property
    def encoder(self) -> StackShape:
        """Return the shape of the encoder."""
        return StackShape(self.encoder_layers, self.heads, self.feed_forward_width)

    @property
    def decoder(self) -> StackShape:
        """Return the shape of the decoder."""
        return StackShape(
            self.decoder_layers,
            self.decoder_heads or self.heads,
            self.decoder_feed_forward_width or self.feed_forward_width,
        )


@section
class TrainingConfig(Section):
    """Settings of optimization, precision and checkpoints."""

    max_updates: int = opt(
        100_000,
        "Stop after this many updates; 0 for no limit.",
        ge=0,
        le=MAX_COUNT,
        may_change=True,
    )
    max_epochs: int = opt(
        0,
        "Stop after this many passes over the corpus; 0 for no limit.",
        ge=0,
        le=MAX_COUNT,
        may_change=True,
    )
    pretrained_model: str = opt("", "Model directory with the initial weights and the tokenizer.")
    max_time: str = opt(
        "", "Stop this command after a time such as 90s, 20m or 2h35m.", may_change=True
    )
    max_tokens: int = opt(
        4096,
        "Target tokens in a batch, padding included; 0 or auto: the preset's total per update, "
        "split to fit memory.",
        ge=0,
        le=10_000_000,
        may_change="on request",
    )
    micro_batch: int = opt(
        0,
        "Target tokens of a batch that are computed at once, padding included; 0 takes 2048 on a "
        "CPU, or 1024 with consistency training, and on a GPU as many as fit its memory.",
        ge=0,
        le=10_000_000,
        may_change=True,
    )
    update_freq: int = opt(
        1, "Batches in each process whose gradients are summed for one update.",
        ge=1, le=1_000_000, may_change=True,
    )  # fmt: skip
    learn_rate: float = opt(
        7e-4,
        "Peak learning rate, at the end of the warm-up.",
        ge=1e-20,
        le=1e38,
        may_change="on request",
    )
    lr_warmup: int = opt(
        4000,
        "Updates of the warm-up, in which the learning rate rises linearly.",
        ge=1,
        le=MAX_COUNT,
        may_change="on request",
    )
    schedule: str = opt(
        INVERSE_SQRT,
        "Learning rate after the warm-up: inverse-sqrt decays as 1/sqrt(update); linear and cosine "
        "decay to 0 at the end of the run; warmup-stable-decay keeps the peak rate and decays to 0 "
        "in the last part of the run.",
        choices=SCHEDULES,
        may_change="on request",
    )
    decay_ratio: float = opt(
        0.2,
        "Part of a run's updates in which the rate of warmup-stable-decay decays.",
        ge=0.001,
        le=0.999,
        may_change="on request",
    )
    label_smoothing: float = opt(
        0.1,
        "Probability mass spread over the whole vocabulary.",
        ge=0,
        lt=1,
        may_change="on request",
    )
    consistency: str = opt(
        "none",
        "Consistency training, which computes each pair twice: once more with other dropout "
        "(r-drop), or with some embeddings set to zero (simcut), and penalizes the divergence of "
        "the two predictions.",
        choices=("none", "r-drop", "simcut"),
        may_change="on request",
    )
    consistency_alpha: float = opt(
        0.0,
        "Weight of that divergence; 0 is the default of the method, 5 with r-drop and 3 with "
        "simcut.",
        ge=0,
        le=1000,
        may_change="on request",
    )
    token_cutoff: float = opt(
        0.05,
        "Share of the source and target tokens whose embeddings simcut sets to zero.",
        ge=0,
        lt=1,
        may_change="on request",
    )
    adam_beta1: float = opt(0.9, "Decay of Adam's first moment.", ge=0, lt=1)
    adam_beta2: float = opt(0.98, "Decay of Adam's second moment.", ge=0, lt=1)
    adam_epsilon: float = opt(1e-9, "Term in the denominator of Adam.", ge=1e-30, le=1)
    weight_decay: float = opt(
        0.0,
        "Decoupled weight decay of the matrices (AdamW).",
        ge=0,
        le=1000,
        may_change="on request",
    )
    clip_norm: float = opt(
        1.0,
        "Maximum norm of the gradient; 0 disables clipping.",
        ge=0,
        le=1e30,
        may_change="on request",
    )
    bad_updates: str = opt(
        "skip",
        "Treatment of an update whose loss or gradient is not finite: skip it, first retry it at "
        "half the learning rate, or stop training.",
        choices=("skip", "retry", "stop"),
        may_change=True,
    )
    max_bad_updates: int = opt(
        10, "Stop after this many such updates in a row.", ge=1, le=MAX_COUNT, may_change=True
    )
    ema_decay: float = opt(
        0.999, "Decay of the average of weights that is validated and saved; 0 disables it.",
        ge=0, lt=1,
    )  # fmt: skip
    seed: int = opt(1, "Random seed.", ge=0, lt=2**31)
    deterministic: bool = opt(
        False, "Make runs on a GPU bitwise reproducible, but slower; on a CPU they always are.",
        may_change=True,
    )  # fmt: skip
    device: str = opt("auto", "Device: auto, cpu, cuda, cuda:N or mps.", may_change=True)
    precision: str = opt(
        "auto",
        "Precision of the matrix products: bf16, fp32, or auto, which is bf16 on devices that are "
        "faster with it. Validation on a CPU is in fp32 unless this is bf16.",
        choices=TRAINING_PRECISIONS,
    )
    compile: str = opt(
        "auto",
        "Compile the layers with torch.compile; auto compiles in long runs on a GPU.",
        choices=("auto", "on", "off"),
        may_change=True,
    )
    activation_checkpointing: bool = opt(
        False,
        "Recompute the activations of each layer in the backward pass: less memory, more time.",
        may_change=True,
    )
    cpu_threads: int = opt(
        0, "Threads on a CPU; 0 for one for each core.", ge=0, le=1024, may_change=True
    )
    disp_freq: int = opt(
        100, "Updates between progress lines.", ge=1, le=MAX_COUNT, may_change=True
    )
    save_freq: int = opt(500, "Updates between checkpoints.", ge=1, le=MAX_COUNT, may_change=True)
    save_retries: int = opt(
        3, "Failed checkpoints in a row, as on a full disk, before training stops.",
        ge=0, le=MAX_COUNT, may_change=True,
    )  # fmt: skip
    keep_checkpoints: int = opt(
        2, "Number of newest checkpoints to keep.", ge=2, le=MAX_COUNT, may_change=True
    )
    keep_best: int = opt(
        0,
        "Number of checkpoints with the best validation scores to keep as well; each is saved at "
        "its validation.",
        ge=0,
        le=MAX_COUNT,
        may_change=True,
    )


@section
class ValidationConfig(Section):
    """Settings of validation, which selects the best checkpoint."""

    freq: int = opt(500, "Updates between validations.", ge=1, le=MAX_COUNT, may_change=True)
    metrics: tuple[str, ...] = opt(
        ("bleu", "chrf", "loss"),
        "Metrics on the validation text; the first one selects the best checkpoint, the next one "
        "breaks ties.",
        choices=("bleu", "chrf", "loss"),
    )
    tokenize: str = opt(
        "auto",
        "BLEU's tokenizer, by sacreBLEU's name; auto selects zh, char or 13a by the script of the "
        "validation text.",
        choices=("auto", *BLEU_TOKENIZERS),
        may_change="to auto",
        legacy_default="13a",  # sacreBLEU's default
    )
    early_stopping: int = opt(
        10,
        "Patience: stop after this many validations without improvement; 0 never stops.",
        ge=0,
        le=MAX_COUNT,
        may_change=True,
    )
    beam_size: int = opt(1, "Beam size of validation; 1 is greedy search.", ge=1, le=256)
    samples: int = opt(
        3,
        "Lines of the validation text that are logged with their translation at each validation; "
        "0 for none.",
        ge=0,
        le=1000,
        may_change=True,
    )


@section
class ParallelConfig(Section):
    """Settings of training in several processes, which torchrun starts."""

    strategy: str = opt(
        "auto",
        "Replicate the weights in each process (ddp), or shard the weights, moments and averages "
        "(fsdp); auto is ddp.",
        choices=("auto", "ddp", "fsdp"),
        may_change=True,
    )
    timeout: int = opt(
        600,
        "Seconds without a heartbeat, or in one part of an update, after which a rank counts as "
        "lost and the run ends.",
        ge=1,
        le=86_400,
        may_change=True,
    )


@section
class RunConfig(Section):
    """All settings of a training run, by section."""

    preset: str = "tiny"
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    validation: ValidationConfig = ValidationConfig()
    parallel: ParallelConfig = ParallelConfig()
    search: SearchConfig = SearchConfig()


SECTIONS = tuple(f.name for f in dataclasses.fields(RunConfig) if f.name != "preset")


def is_rule_file(rule: str) -> bool:
    """Return True if a normalization rule is the path of a file, not a name."""
    return rule.lower().endswith(".tsv")


def norm_name(norm: str) -> str:
    """Return a value of `model.norm` as it is called in a text."""
    return "DeepNorm" if norm == "deepnorm" else f"{norm}-norm"


def legacy_defaults() -> dict[str, dict[str, Value]]:
    """Return the values, by section, of settings that models and runs of formats before 3 lack."""
    values: dict[str, dict[str, Value]] = {}
    for section in SECTIONS:
        for setting in dataclasses.fields(getattr(RunConfig(), section)):
            if (value := setting.metadata["legacy_default"]) is not None:
                values.setdefault(section, {})[setting.name] = value
    return values
