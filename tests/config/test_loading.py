import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tfm_cli.config.loading import Lookups, Overrides, changed_settings, read_toml, resolve
from tfm_cli.config.presets import (
    CPU_RECIPES,
    GPU_RECIPES,
    PRESETS,
    SAMPLE_RUN,
    Recipe,
    recipe_for,
)  # fmt: skip
from tfm_cli.config.settings import SECTIONS, DataConfig, RunConfig, Value
from tfm_cli.config.validation import Problems, from_mapping
from tfm_cli.errors import ConfigError

CORPUS: dict[str, dict[str, Any]] = {"data": {"source": ("a",), "target": ("b",)}}


def toml(directory: Path, text: str) -> Path:
    path = directory / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


# --- where a setting comes from ---------------------------------------------------------------


def test_default_yields_to_preset_to_file_to_assignment_to_flag(tmp_path: Path) -> None:
    file = toml(tmp_path, "[training]\nlr_warmup = 2\nsave_freq = 2\nseed = 2")

    config = resolve(
        preset="small",
        file=file,
        assignments=["training.save_freq=3", "training.seed=3"],
        flags={**CORPUS, "training": {"seed": 4, "max_tokens": None}},
    )

    assert config.training.max_tokens == RunConfig().training.max_tokens
    assert config.training.learn_rate == PRESETS["small"]["training"]["learn_rate"]
    assert config.training.lr_warmup == 2
    assert config.training.save_freq == 3
    assert config.training.seed == 4


def test_later_assignment_is_the_stronger() -> None:
    config = resolve(assignments=["training.seed=3", "training.seed=5"])

    assert config.training.seed == 5


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_taken_from_the_file_or_from_its_flag(name: str, tmp_path: Path) -> None:
    by_file = resolve(file=toml(tmp_path, f'preset = "{name}"'), flags=CORPUS)
    by_flag = resolve(preset=name, flags=CORPUS)

    assert by_file == by_flag
    assert by_flag.preset == name


def test_preset_flag_is_stronger_than_the_files(tmp_path: Path) -> None:
    config = resolve(preset="base", file=toml(tmp_path, 'preset = "tiny"'))

    assert config.preset == "base"
    assert config.model.width == 512


def test_tiny_is_the_preset_where_none_is_named() -> None:
    config = resolve(flags=CORPUS)

    assert config == resolve(preset="tiny", flags=CORPUS)


def test_tiny_without_a_corpus_learns_the_sample_in_its_own_way() -> None:
    sample, own = resolve(), resolve(flags=CORPUS)

    assert sample.training.max_updates == SAMPLE_RUN["training"]["max_updates"]
    assert own.training.max_updates == PRESETS["tiny"]["training"]["max_updates"]
    assert (sample.preset, own.preset) == ("sample", "tiny")


def test_what_a_pretrained_model_was_made_with_replaces_the_preset(tmp_path: Path) -> None:
    asked = []

    def look_up(directory: str) -> Overrides:
        asked.append(directory)
        return {"model": {"width": 96, "heads": 6, "dropout": 0.25}}

    config = resolve(
        file=toml(tmp_path, '[training]\npretrained_model = "old"'),
        assignments=["model.dropout=0.5"],
        flags=CORPUS,
        lookups=Lookups(pretrained=look_up),
    )

    assert asked == ["old"]
    assert (config.model.width, config.model.heads, config.model.dropout) == (96, 6, 0.5)


# --- what `--set` takes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("training.max_time=20m", "20m"),
        ("training.max_time=90", "90"),
        ("training.max_time='90'", "90"),
        ("training.device=cpu", "cpu"),
        ("training.ema-decay=0", 0.0),
        ("tokenizer.byte_fallback=false", False),
        ("tokenizer.model=", ""),
        ("tokenizer.model=12.model", "12.model"),
        ("data.valid_source=[]", ()),
        ("validation.metrics=loss", ("loss",)),
        ("validation.metrics=['loss', \"chrf\"]", ("loss", "chrf")),
    ],
)
def test_assignment_is_read_as_the_setting_wants_it(assignment: str, value: Value) -> None:
    section, name = assignment.partition("=")[0].replace("-", "_").split(".")

    config = resolve(assignments=[assignment])

    result = getattr(getattr(config, section), name)
    assert result == value
    assert type(result) is type(value)


def test_file_that_is_called_like_a_number_can_be_assigned() -> None:
    config = resolve(assignments=["data.source=2024", "data.target=2025-01-01"])

    assert config.data.source == ("2024",)
    assert config.data.target == ("2025-01-01",)


@pytest.mark.parametrize("assignment", ["seed=3", "training.seed", "", "training"])
def test_assignment_that_is_none_is_refused(assignment: str) -> None:
    with pytest.raises(ConfigError, match=r"must be `section\.name=value`"):
        resolve(assignments=[assignment])


def test_problems_of_file_assignment_and_flag_are_told_at_once(tmp_path: Path) -> None:
    file = toml(tmp_path, 'preset = "huge"\ntraining = 3\n[modle]\nwidth = 3\n[search]\nbeam = 3')

    with pytest.raises(ConfigError) as caught:
        resolve(
            file=file, assignments=["model.heads=x", "nonsense"], flags={"training": {"seed": -1}}
        )

    assert str(caught.value).split("\n  ") == [
        "the settings have 7 problems",
        "preset: must be one of `auto`, `tiny`, `small`, `base`, `big`, got `huge`",
        "--set nonsense: must be `section.name=value`",
        "training: must be a table of settings",
        "modle: unknown section; did you mean `model`?",
        "model.heads: must be a whole number, got `x`",
        "training.seed: must be at least 0, got -1",
        "search.beam: unknown setting; did you mean `beam_size`?",
    ]


@pytest.mark.parametrize("preset", ['["base"]', "5", "{}", '""'])
def test_preset_that_is_no_name_is_refused(preset: str, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="preset: must be one of `auto`, `tiny`, `small`, `base`, `big`, got "
    ):
        resolve(file=toml(tmp_path, f"preset = {preset}"))


# --- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[model]\nwidth = \n", r"run.toml: is not TOML: invalid value \(at line 2, column 9\)"),
        (b"[model]\nwidth = 1\nwidth = 2\n", r"run.toml: is not TOML: .*line 3"),
        (b"a = " + b"1" * 5000, r"run.toml: is not TOML: .*digits"),
        (b"a = " + b"[" * 100_000, r"run.toml: is not TOML: it is nested too deeply"),
        (b"a = '\xff'", r"run.toml: byte 6 is not UTF-8"),
        (b"[model]\n" + b"a." * 60_000 + b"a = 1", r"a key of more than 8 parts \(at line 2\)"),
        (b"[" + b"a ." * 60_000 + b"a]", r"a key of more than 8 parts \(at line 1\)"),
        (b"x = {" + b"'a'\t.\t\"b.c\"." * 60_000 + b"a = 1}", r"a key of more than 8 parts"),
        (b'x = """\n\n"""\n' + b"a." * 9 + b"a = 1", r"at line 4\)"),
        (b"x = 1\n#" + b"-" * (1 << 20), r"run.toml: has more than 1048576 bytes"),
        (b'x = "' + b'\\"' * 400_000, r"run.toml: is not TOML"),
        (b"[model]\n" + b"".join(b"a%d=1\n" % i for i in range(80_000)), "has 80000 settings"),
        (
            b"".join(b"[a%d]\n" % i for i in range(80_000)),
            "has 80000 settings, expected at most 1000",
        ),
        (b"x = " + b"a" * 1_000_000, r"run.toml: is not TOML"),
        (b"x = " + b"'" * 1_000_000, r"run.toml: is not TOML"),
    ],
)
@pytest.mark.timeout(20)
def test_file_that_is_no_toml_is_refused_with_the_place(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)

    with pytest.raises(ConfigError, match=message):
        read_toml(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file"):
        read_toml(tmp_path / "none.toml")


def test_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(b"\xef\xbb\xbf[training]\nseed = 3\n")

    assert read_toml(path) == {"training": {"seed": 3}}


# --- how often each training file is seen ---------------------------------------------------------


def test_weights_are_a_list_or_a_text_with_commas() -> None:
    flags = {"data": {"source": ("a", "b"), "target": ("c", "d")}}

    for text in ("2,0.5", "[2, 0.5]", '["2", 0.5]'):
        assert resolve(assignments=[f"data.weights={text}"], flags=flags).data.weights == (2, 0.5)
    assert resolve(flags=flags).data.weights == ()
    one = resolve(assignments=["data.weights=3"], flags={"data": {"pairs": ("a.tsv",)}})
    assert one.data.weights == (3.0,)


def test_weights_by_file_take_the_order_of_the_files(tmp_path: Path) -> None:
    text = """
    [data]
    source = ["x/a.en", "b.en"]
    target = ["a.de", "b.de"]
    pairs = "c.tsv"
    [data.weights]
    "c.tsv" = 3
    "x/a.en" = 0.5
    """

    assert resolve(file=toml(tmp_path, text)).data.weights == (0.5, 1.0, 3.0)


def test_weight_of_no_training_file_is_refused_with_the_nearest(tmp_path: Path) -> None:
    text = '[data]\nsource = ["a.en"]\ntarget = ["a.de"]\n[data.weights]\n"a.em" = 3\n'

    with pytest.raises(ConfigError) as caught:
        resolve(file=toml(tmp_path, text))

    message = "data.weights.a.em: is not a training file; did you mean `a.en`?"
    assert str(caught.value).split("\n  ")[1:] == [message]


def test_pairs_in_one_file_are_a_corpus(tmp_path: Path) -> None:
    assert (
        resolve(flags={"data": {"pairs": ("a.tsv",)}}).training.max_updates
        == (PRESETS["tiny"]["training"]["max_updates"])
    )


# --- going on with other settings ---------------------------------------------------------------


def _another(value: Value) -> Value:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return value + "x" if isinstance(value, str) else (*value, "x")


FIELDS = [
    pytest.param(section, field.name, id=f"{section}.{field.name}")
    for section in SECTIONS
    for field in dataclasses.fields(getattr(RunConfig(), section))
]
# Where the files are, how long and where to compute, what to show and what to keep.
MAY_CHANGE = {
    "data.source", "data.target", "data.valid_source", "data.valid_target",
    "data.pairs", "data.pairs_format", "data.cache", "data.workers",
    "training.max_updates", "training.max_epochs", "training.max_time", "training.device",
    "training.cpu_threads", "training.disp_freq", "training.save_freq",
    "training.keep_checkpoints", "training.keep_best", "training.micro_batch",
    "training.activation_checkpointing",
    "training.compile", "training.update_freq", "parallel.strategy", "parallel.timeout",
    "training.deterministic", "training.bad_updates", "training.max_bad_updates",
    "training.save_retries",
    "validation.early_stopping", "validation.freq", "validation.samples",
    "search.beam_size", "search.n_best", "search.max_tokens", "search.buffer_size",
    "search.top_k", "search.top_p", "search.temperature", "search.seed",
}  # fmt: skip


@pytest.mark.parametrize(("section", "name"), FIELDS)
def test_every_setting_may_change_on_the_way_or_its_change_is_told(section: str, name: str) -> None:
    old = RunConfig()
    before = getattr(old, section)
    value = getattr(before, name)
    changed = dataclasses.replace(before, **{name: _another(value)})
    new = dataclasses.replace(old, **{section: changed})

    changes = changed_settings(old, new)

    if f"{section}.{name}" in MAY_CHANGE:
        assert changes == []
    else:
        (line,) = changes
        assert line.startswith(f"{section}.{name}: ")
        assert " → " in line


def test_all_changes_are_told_with_the_old_and_the_new_value() -> None:
    old = RunConfig()
    new = resolve(
        preset="base",
        flags=CORPUS,
        assignments=["validation.metrics=loss", "model.width=64", "training.pretrained_model=m"],
    )

    assert changed_settings(old, new)[-3:] == [
        "training.clip_norm: 1.0 → 0.0",
        "training.ema_decay: 0.999 → 0.9999",
        "validation.metrics: bleu, chrf, loss → loss",
    ]
    assert "model.width: 512 → 64" in changed_settings(old, new)
    assert "training.pretrained_model: (none) → `m`" in changed_settings(old, new)


def test_settings_are_checked_without_importing_torch() -> None:
    program = (
        "import sys, tfm_cli.cli, tfm_cli.config.loading as c, tfm_cli.training.data\n"
        "import tfm_cli.training.run_directory, tfm_cli.model_directory.config_file\n"
        "c.write_toml(c.resolve(preset='base'))\n"
        "assert not {'torch', 'sacrebleu'} & set(sys.modules)\n"
    )

    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.timeout(20)
def test_value_with_a_key_of_many_parts_is_a_text() -> None:
    value = "{" + "a." * 60_000 + "a = 1}"

    assert resolve(assignments=[f"data.cache={value}"]).data.cache == value


def test_dots_in_strings_and_comments_are_no_parts_of_keys(tmp_path: Path) -> None:
    text = "# a.b.c.d.e.f.g.h.i.j.k\n[data]\ncache = '1.2.3.4.5.6.7.8.9.10' # a.b.c.d.e.f.g.h.i.j\n"

    assert resolve(file=toml(tmp_path, text)).data.cache == "1.2.3.4.5.6.7.8.9.10"


# --- preset auto ----------------------------------------------------------------------------------

CHANGES: dict[str, dict[str, Any]] = {"model": {"dropout": 0.4}, "training": {"lr_warmup": 500}}


def chosen(**named: Any) -> tuple[RunConfig, list[tuple[tuple[str, ...], object]]]:
    """Return the settings with a recipe of `small`, and what the choice was asked for."""
    asked = []

    def choose(data: DataConfig, device: object) -> Recipe:
        asked.append((data.source, device))
        return Recipe(10, "small", CHANGES, "why")

    pretrained = named.pop("pretrained", None)
    lookups = Lookups(recipe=choose, pretrained=pretrained)
    return resolve(lookups=lookups, **{"flags": CORPUS, **named}), asked


@pytest.mark.parametrize("preset", [None, "auto"])
def test_auto_is_the_recipe_for_the_text(preset: str | None) -> None:
    config, asked = chosen(preset=preset)

    assert asked == [(("a",), "auto")]
    assert config.preset == "small"
    assert config.model.width == PRESETS["small"]["model"]["width"]
    assert (config.model.dropout, config.training.lr_warmup) == (0.4, 500)
    # What `--dump-config` wrote gives the same settings without a choice.
    assert config == resolve(preset="small", flags={**CHANGES, **CORPUS})


def test_values_that_are_given_come_after_the_recipe() -> None:
    flags = {**CORPUS, "model": {"dropout": 0.1}, "training": {"device": "cpu"}}

    config, asked = chosen(flags=flags, assignments=["model.width=64"])

    assert asked == [(("a",), "cpu")]
    assert (config.model.dropout, config.model.width, config.training.lr_warmup) == (0.1, 64, 500)


@pytest.mark.parametrize(
    ("updates", "warmup"), [(1, 1), (4, 1), (6, 2), (100, 20), (2500, 500), (9999, 500)]
)
def test_warmup_of_a_short_run_is_a_fifth_of_it(updates: int, warmup: int) -> None:
    config, _ = chosen(flags={**CORPUS, "training": {"max_updates": updates}})
    own, _ = chosen(flags={**CORPUS, "training": {"max_updates": updates, "lr_warmup": 7}})

    assert (config.training.lr_warmup, own.training.lr_warmup) == (warmup, 7)


@pytest.mark.parametrize(
    "named",
    [{"preset": "tiny"}, {"flags": {}}, {"resumed": RunConfig()},
     {"flags": {**CORPUS, "training": {"pretrained_model": "m"}}, "pretrained": lambda _: {}}],
    ids=["another preset", "sample", "resumed", "pretrained"],
)  # fmt: skip
def test_nothing_is_chosen_where_something_else_decides(named: dict[str, Any]) -> None:
    config, asked = chosen(**named)

    assert asked == []
    assert config.preset in ("tiny", "sample")


@pytest.mark.parametrize("recipes", [CPU_RECIPES, GPU_RECIPES], ids=["CPU", "GPU"])
def test_each_recipe_is_chosen_for_its_sizes(recipes: tuple[Recipe, ...]) -> None:
    has_gpu = recipes is GPU_RECIPES
    least = 0
    for recipe in recipes:
        most = 10**9 if math.isinf(recipe.max_pairs) else int(recipe.max_pairs)
        for pairs in (least, most):
            assert recipe_for(pairs, has_gpu=has_gpu) is recipe
        from_mapping(
            {section: {**PRESETS[recipe.preset].get(section, {}), **values}
             for section, values in recipe.changes.items()}, problems := Problems()
        )  # fmt: skip
        problems.raise_if_any()
        least = most + 1
