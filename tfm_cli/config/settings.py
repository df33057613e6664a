"""Every setting there is: its name, type, default, bounds and help, in one place.

From here come the checks of TOML files and `--set`, and the flags of the commands with their help.
The resolved settings are saved with each model.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

# A setting: its default, its bounds and what it means, as a field of a dataclass.

# Of what is counted: more than anybody will see, and few enough for 64 bits.
MOST = 10**12

Value = bool | int | float | str | tuple[str, ...] | tuple[float, ...]


def opt(
    default: Value,
    help_text: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: tuple[Value, ...] | None = None,
    may_change: bool = False,
    before: Value | None = None,
    decided: bool = False,
) -> Any:
    """A field of a section.

    Args:
        default: the built-in default, which a preset, file, `--set` or flag replaces.
        help_text: one sentence, used for the flag's help as well.
        ge: smallest legal number; gt: legal numbers are above it; le, lt: the same from above.
        choices: the legal values, where they are few.
        may_change: a run may be resumed with another value, since it alters no result that was
            already reached. All other settings must stay as they were.
        before: the value that models and runs of formats before 3 have, which lack the setting.
        decided: `auto` is replaced by what suits the text when a run begins, and saved as that; a
            run that is resumed keeps it.
    """
    metadata = {
        "help": help_text,
        "ge": ge,
        "gt": gt,
        "le": le,
        "lt": lt,
        "choices": choices,
        "may_change": may_change,
        "before": before,
        "decided": decided,
    }
    return field(default=default, metadata=metadata)


# The settings of decoding, a section of `config.py`.


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How translations are looked for."""

    beam_size: int = opt(4, "Hypotheses kept for each segment; 1 is greedy.", ge=1, le=256)
    length_penalty: float = opt(
        1.0, "Exponent of the length normalisation; 0 turns it off.", ge=0, le=10
    )
    length_norm: str = opt(
        "power",
        "What is raised to it: the number n of pieces, or (5 + n) / 6 (Wu et al. 2016).",
        choices=("power", "wu"),
    )
    early_stopping: bool = opt(
        False,
        "Stop when as many translations as the beam is wide have ended; else go on while one that "
        "still grows might score above the worst of them.",
    )
    renormalize: bool = opt(
        False,
        "Share the probability of pieces that are never written among the others.",
    )
    n_best: int = opt(
        1,
        "Different translations printed for each line, at most the beam size; with sampling, "
        "samples.",
        ge=1,
        le=256,
    )
    no_repeat_ngram_size: int = opt(
        0, "No run of this many pieces is written twice in a translation; 0 for any.", ge=0, le=256
    )
    repetition_penalty: float = opt(
        1.0,
        "Divides the positive logits of pieces already written, multiplies the negative ones; 1 "
        "leaves them as they are (Keskar et al. 2019).",
        ge=0.01,
        le=1000,
    )
    max_length: int = opt(
        256, "Longest segment in source pieces that is translated in one go.", ge=2, le=1_000_000
    )
    max_length_factor: float = opt(
        3.0,
        "A translation has at most this many pieces for each source piece, plus 10.",
        ge=0.001,
        le=1000,
    )
    max_tokens: int = opt(4096, "Source pieces in a batch, times the beam.", ge=1, le=MOST)
    buffer_size: int = opt(
        4096, "Most lines read ahead, sorted and translated together.", ge=1, le=MOST
    )
    top_k: int = opt(0, "Sample among this many likeliest pieces; 0 for all.", ge=0, le=MOST)
    top_p: float = opt(1.0, "Sample among the likeliest pieces of this total mass.", ge=1e-6, le=1)
    temperature: float = opt(1.0, "Divides the logits before sampling.", ge=1e-6, le=1000)
    seed: int = opt(1, "Seed of the sampling.", ge=0, lt=2**31)


__all__ = [
    "BLEU_TOKENIZERS", "NORMALIZATION_RULES", "SECTIONS", "DataConfig",
    "ModelConfig", "RunConfig", "SearchConfig", "TokenizerConfig", "TrainingConfig",
    "ValidationConfig", "Value", "is_rule_file", "settings_before",
]  # fmt: skip

# SentencePiece's names of rules that change characters before text is cut into pieces.
NORMALIZATION_RULES = ("identity", "nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf")

# sacreBLEU's tokenizers of BLEU, as of its version 2.6.
BLEU_TOKENIZERS = (
    "none", "zh", "13a", "intl", "char", "ja-mecab", "ko-mecab", "spm", "flores101", "flores200",
    "spBLEU-1K",
)  # fmt: skip

# Of the matrix products in translation; training has fewer.


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which text is learned from."""

    # Files may be moved: a checkpoint knows their content by its hash.
    source: tuple[str, ...] = opt(
        (), "Training text in the source language, plain, .gz, .zst or .xz.", may_change=True
    )
    target: tuple[str, ...] = opt((), "Its translation, line by line.", may_change=True)
    valid_source: tuple[str, ...] = opt((), "Validation text in the source.", may_change=True)
    valid_target: tuple[str, ...] = opt((), "Its translation, line by line.", may_change=True)
    pairs: tuple[str, ...] = opt(
        (),
        "Training text with both sides in one file, source<TAB>target (.tsv) or JSON lines with "
        "`source` and `target` (.jsonl); `-` is standard input.",
        may_change=True,
    )
    pairs_format: str = opt(
        "auto",
        "What the files of pairs hold; auto tells it by their names.",
        choices=("auto", "tsv", "jsonl"),
        may_change=True,
    )
    weights: tuple[float, ...] = opt(
        (),
        "How often an epoch has the pairs of each training file, in order; without any, all once.",
        ge=1e-12,
        le=100,
    )
    tags: tuple[str, ...] = opt(
        (),
        "Language tags, such as `>>fra<<`, with which source lines begin: one piece each of a "
        "tokenizer that is learned. Without any, those of the text, if a tenth of its lines begin "
        "with one; `none` makes them text.",
    )
    max_length: int = opt(
        256,
        "Training pairs with more pieces than this on a side are dropped and counted.",
        ge=2,
        le=1_000_000,
    )
    max_ratio: float = opt(
        0.0,
        "Training pairs of which one side has more than this many times the pieces of the other "
        "are dropped; 0 for any.",
        ge=0,
        le=1_000_000,
    )
    drop_identical: bool = opt(False, "Drop training pairs of which both sides are the same text.")
    drop_duplicates: bool = opt(False, "Drop training pairs that occurred before.")
    drop_bad_characters: bool = opt(
        False,
        "Drop training pairs with control or private-use characters, U+FFFD, U+FEFF, "
        "noncharacters or separators of lines.",
    )
    bad_utf8: str = opt(
        "refuse",
        "Training text that is no UTF-8 ends the run, gets U+FFFD instead, or drops its pair.",
        choices=("refuse", "replace", "drop-pair"),
    )
    cache: str = opt(
        "",
        "Directory in which prepared training text is kept; by default `corpus` in the model's.",
        may_change=True,
    )
    workers: int = opt(
        0,
        "Processes that prepare the training text; 0 takes one for each core.",
        ge=0,
        le=1024,
        may_change=True,
    )


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """How text is cut into pieces; the names are SentencePiece's own."""

    model: str = opt("", "SentencePiece model to use; without one, one is learned from the corpus.")
    vocab_size: int = opt(8000, "Number of pieces to learn.", ge=8, le=1_000_000)
    model_type: str = opt(
        "unigram", "Kind of subword model.", choices=("unigram", "bpe", "char", "word")
    )
    character_coverage: float = opt(
        0.9995, "Share of the characters that get a piece of their own.", ge=0.001, le=1
    )
    input_sentence_size: int = opt(
        1_000_000,
        "Lines that the subword model is learned from, drawn at random; bounds the memory.",
        ge=1,
        le=MOST,
    )
    normalization_rule_name: str = opt(
        "identity",
        "Rule that changes characters before text is cut into pieces, and so in translations too: "
        "identity (none), nfkc, nmt_nfkc, nfkc_cf, nmt_nfkc_cf (cf folds case), or a .tsv file of "
        "rules, whose tokenizer takes up to a second longer to load.",
        before="nmt_nfkc",
    )
    byte_fallback: bool = opt(True, "Spell unknown characters as UTF-8 bytes.")
    joint: bool = opt(
        True, "Learn one tokenizer for both languages; else one each, with a vocabulary each."
    )


@dataclass(frozen=True, slots=True)
class StackShape:
    """The shape of the encoder or of the decoder, with nothing left to be looked up."""

    layers: int
    heads: int
    feed_forward_width: int


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of the Transformer; the defaults are the base model of Vaswani et al. 2017."""

    encoder_layers: int = opt(6, "Encoder layers.", ge=1, le=128)
    decoder_layers: int = opt(6, "Decoder layers.", ge=1, le=128)
    width: int = opt(512, "Width of embeddings and layers (d_model).", ge=2, le=16384)
    heads: int = opt(8, "Attention heads; must divide the width.", ge=1, le=256)
    feed_forward_width: int = opt(
        2048, "Inner width of the feed-forward layers (d_ff).", ge=1, le=65536
    )
    decoder_heads: int = opt(
        0, "Attention heads of the decoder, where it has others; 0 for `heads`.", ge=0, le=256
    )
    decoder_feed_forward_width: int = opt(
        0,
        "Inner width of the decoder's feed-forward layers, where it is another; 0 for "
        "`feed_forward_width`.",
        ge=0,
        le=65536,
    )
    dropout: float = opt(
        0.1, "Dropout on embeddings and on the output of each sub-layer.", ge=0, lt=1
    )
    norm: str = opt(
        "post", "Layer norm after each sub-layer's residual, or before it.", choices=("post", "pre")
    )
    positions: str = opt(
        "sinusoidal",
        "Position encoding; the paper's sinusoids, or two other layouts of them.",
        choices=("sinusoidal", "sinusoidal_halves", "sinusoidal_marian", "learned", "rotary"),
    )
    max_positions: int = opt(
        1024, "Longest segment in pieces that learned positions can encode.", ge=2, le=1_000_000
    )
    activation: str = opt(
        "relu",
        "Activation of the feed-forward layers; swiglu has a gate.",
        choices=("relu", "gelu", "swish", "swiglu"),
    )
    tied_embeddings: int = opt(
        3,
        "Matrices that are one: 3 source, target and output; 2 target and output; 1 source and "
        "target; 0 none.",
        choices=(0, 1, 2, 3),
    )
    scale_embeddings: bool = opt(True, "Multiply embeddings by the square root of the width.")
    output_bias: bool = opt(False, "Learn a bias for each logit.")

    def __post_init__(self) -> None:
        # The same shape has one spelling, so that settings are equal if shapes are.
        if self.decoder_heads == self.heads:
            object.__setattr__(self, "decoder_heads", 0)
        if self.decoder_feed_forward_width == self.feed_forward_width:
            object.__setattr__(self, "decoder_feed_forward_width", 0)

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


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the model learns, and for how long."""

    max_updates: int = opt(
        100_000, "Stop after this many updates; 0 for no limit.", ge=0, le=MOST, may_change=True
    )
    max_epochs: int = opt(
        0,
        "Stop after this many passes over the corpus; 0 for no limit.",
        ge=0,
        le=MOST,
        may_change=True,
    )
    pretrained_model: str = opt("", "Model directory whose weights and tokenizer to start from.")
    max_time: str = opt(
        "", "Stop this command after this time, such as 90s, 20m or 2h.", may_change=True
    )
    max_tokens: int = opt(
        4096,
        "Target pieces in a batch, padding included; 0 or auto: the preset's, those of an update "
        "in one batch, of which as much is computed at once as fits.",
        ge=0,
        le=10_000_000,
    )
    micro_batch: int = opt(
        0,
        "Most target pieces of a batch that are computed at once, padding included; 0 takes 2048 "
        "on a CPU, and elsewhere as many as fit its memory.",
        ge=0,
        le=10_000_000,
        may_change=True,
    )
    update_freq: int = opt(
        1, "Batches whose gradients are summed for one update, in each process.",
        ge=1, le=1_000_000, may_change=True,
    )  # fmt: skip
    learn_rate: float = opt(
        7e-4, "Highest learning rate, reached at the end of warm-up.", ge=1e-20, le=1e38
    )
    lr_warmup: int = opt(
        4000, "Updates over which the rate rises; then it falls as 1/sqrt(update).", ge=1, le=MOST
    )
    label_smoothing: float = opt(
        0.1, "Probability mass that the target spreads over all pieces.", ge=0, lt=1
    )
    adam_beta1: float = opt(0.9, "Decay of Adam's mean of gradients.", ge=0, lt=1)
    adam_beta2: float = opt(0.98, "Decay of Adam's mean of squared gradients.", ge=0, lt=1)
    adam_epsilon: float = opt(1e-9, "Adam's guard against division by zero.", ge=1e-30, le=1)
    weight_decay: float = opt(0.0, "Decoupled weight decay of the matrices (AdamW).", ge=0, le=1000)
    clip_norm: float = opt(
        1.0, "Largest norm of the gradient; 0 leaves it as it is.", ge=0, le=1e30
    )
    bad_updates: str = opt(
        "skip",
        "What becomes of an update whose loss or gradient is no finite number: it is left out, or "
        "made once more at half the learning rate first, or training stops.",
        choices=("skip", "retry", "stop"),
        may_change=True,
    )
    max_bad_updates: int = opt(
        10, "Stop after this many of them in a row.", ge=1, le=MOST, may_change=True
    )
    ema_decay: float = opt(
        0.999, "Decay of the moving average of weights that is validated and kept; 0 for none.",
        ge=0, lt=1,
    )  # fmt: skip
    seed: int = opt(1, "Seed of all that is random.", ge=0, lt=2**31)
    deterministic: bool = opt(
        False, "Same run, same weights to the bit on a GPU too, but slower; a CPU always does.",
        may_change=True,
    )  # fmt: skip
    device: str = opt("auto", "Where to compute: auto, cpu, cuda, cuda:N or mps.", may_change=True)
    precision: str = opt(
        "auto",
        "Arithmetic of training's matrix products: bf16, fp32, or auto, which is bf16 where the "
        "device is faster with it. Validation on a CPU is in fp32 unless bf16 is asked for.",
        choices=("auto", "fp32", "bf16"),
    )
    compile: str = opt(
        "auto",
        "Compile the layers by torch.compile; auto does in long runs on a GPU.",
        choices=("auto", "on", "off"),
        may_change=True,
    )
    activation_checkpointing: bool = opt(
        False,
        "Compute the inside of each layer twice rather than remember it: less memory, more time.",
        may_change=True,
    )
    cpu_threads: int = opt(
        0, "Threads on a CPU; 0 takes one for each core.", ge=0, le=1024, may_change=True
    )
    disp_freq: int = opt(100, "Updates between progress lines.", ge=1, le=MOST, may_change=True)
    save_freq: int = opt(500, "Updates between checkpoints.", ge=1, le=MOST, may_change=True)
    save_retries: int = opt(
        3, "Checkpoints in a row that may fail, as on a full disk, before training stops.",
        ge=0, le=MOST, may_change=True,
    )  # fmt: skip
    keep_checkpoints: int = opt(
        2, "Newest checkpoints that are kept.", ge=2, le=MOST, may_change=True
    )


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """How the model is judged while it learns; the best one so far is what gets kept."""

    freq: int = opt(500, "Updates between validations.", ge=1, le=MOST)
    metrics: tuple[str, ...] = opt(
        ("bleu", "chrf", "loss"),
        "Measures on the validation text; the first one decides what is best, and where it is "
        "equal, the next one.",
        choices=("bleu", "chrf", "loss"),
    )
    tokenize: str = opt(
        "auto",
        "Tokenizer of BLEU, by sacreBLEU's name; auto takes zh, char or 13a by the script of the "
        "validation text.",
        choices=("auto", *BLEU_TOKENIZERS),
        decided=True,
        before="13a",  # sacreBLEU's default
    )
    early_stopping: int = opt(
        10,
        "Stop after this many validations that were no better than the best; 0 never stops.",
        ge=0,
        le=MOST,
        may_change=True,
    )
    beam_size: int = opt(1, "Beam of the validation translations; 1 is greedy.", ge=1, le=256)


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How several processes, as torchrun starts them, train one model."""

    strategy: str = opt(
        "auto",
        "What each process keeps: all weights (ddp), or a part of each weight, its moments and its "
        "average (fsdp); auto is ddp.",
        choices=("auto", "ddp", "fsdp"),
        may_change=True,
    )
    timeout: int = opt(
        600,
        "Seconds after which a process that is silent, or takes that long for a part of an update, "
        "ends all of them.",
        ge=1,
        le=86_400,
        may_change=True,
    )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All settings of a training run, section by section."""

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
    """Return True if a normalization rule is the path of a file, and no name."""
    return rule.lower().endswith(".tsv")


def settings_before() -> dict[str, dict[str, Value]]:
    """Return what models and runs of formats before 3 have for settings which these lack."""
    values: dict[str, dict[str, Value]] = {}
    for section in SECTIONS:
        for setting in dataclasses.fields(getattr(RunConfig(), section)):
            if setting.metadata["before"] is not None:
                values.setdefault(section, {})[setting.name] = setting.metadata["before"]
    return values
