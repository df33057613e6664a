"""Every number of an explanation is one that the model or its search computes."""

import copy
import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.model_directory.saved_models import save_random_model
from tfm_cli.config.settings import ModelConfig, SearchConfig, TokenizerConfig
from tfm_cli.errors import ConfigError, DataError
from tfm_cli.model.positions import LearnedPositions
from tfm_cli.model_directory.weights import TrainedModel, WeightsFacts, load_model
from tfm_cli.pictures import search_comparison
from tfm_cli.pictures.explaining import (
    MAX_TOKENS,
    ExplainOptions,
    ForwardPass,
    explain,
    lens,
    reversed_words,
)
from tfm_cli.pictures.explanation import Attention, Explanation, Node
from tfm_cli.training.loss import cross_entropy
from tfm_cli.translation.translator import Translator

CPU = torch.device("cpu")
CLOSE = 1e-6
GOLDEN = Path(__file__).resolve().parents[1] / "golden"
SENTENCE = "one three five seven nine two"
LINES = [SENTENCE, "two four six eight", "eins zwei drei vier fünf", "one two one two"] * 8
SHAPES: dict[str, dict[str, Any]] = {
    "paper": {},
    "pre-norm, rotary, swiglu": {"norm": "pre", "positions": "rotary", "activation": "swiglu"},
    "deepnorm": {"norm": "deepnorm", "encoder_layers": 3},
    "learned, untied": {"positions": "learned", "max_positions": 800, "tied_embeddings": 0},
    "uneven stacks": {
        "encoder_layers": 3, "decoder_layers": 1, "decoder_heads": 2,
        "decoder_feed_forward_width": 24, "positions": "sinusoidal_marian", "output_bias": True,
    },
}  # fmt: skip
every_shape = pytest.mark.parametrize("shape", SHAPES)


def random_model(directory: Path, shape: dict[str, Any], algorithm: str = "unigram") -> Path:
    small = {
        "encoder_layers": 2, "decoder_layers": 2, "width": 16, "heads": 4, "feed_forward_width": 32,
        "dropout": 0.0,
    }  # fmt: skip
    save_random_model(
        directory,
        ModelConfig(**{**small, **shape}),
        TokenizerConfig(vocab_size=60, model_type=algorithm, byte_fallback=False),
        lines=LINES,
        facts=WeightsFacts(update=1, scores={}),
    )
    return directory


ModelOf = Callable[..., TrainedModel]


@pytest.fixture(scope="session")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> ModelOf:
    """Return a function that returns the model of random weights of a shape."""

    @functools.cache
    def make(shape: str = "paper", algorithm: str = "unigram") -> TrainedModel:
        directory = tmp_path_factory.mktemp("model")
        return load_model(random_model(directory, SHAPES[shape], algorithm), CPU)

    return make


TARGET = "eins drei fünf sieben"
Explained = Callable[[str], tuple[TrainedModel, Explanation]]


@pytest.fixture(scope="session")
def explained(model_of: ModelOf) -> Explained:
    """Return a function that returns the model of a shape and its explanation of one pair."""

    @functools.cache
    def make(shape: str) -> tuple[TrainedModel, Explanation]:
        model = model_of(shape)
        return model, explain(model, SENTENCE, target=TARGET)

    return make


@pytest.fixture(scope="session")
def trained(tiny_model: Path) -> TrainedModel:
    return load_model(tiny_model, CPU)


@pytest.fixture(scope="session")
def found(trained: TrainedModel) -> Explanation:
    return explain(trained, SENTENCE)


def attentions(explanation: Explanation) -> list[Attention]:
    return [
        *explanation.self_attention,
        *explanation.masked_self_attention,
        *explanation.cross_attention,
    ]


def output_of(model: TrainedModel, explanation: Explanation) -> Tensor:
    """Return the model's own logits (T, V), without a recording."""
    source = torch.tensor([explanation.source.ids])
    target = torch.tensor([explanation.target_input.ids])
    with torch.inference_mode():
        logits: Tensor = model.transformer(source, None, target)[0]
    return logits


@every_shape
def test_attention_has_rows_that_sum_to_1_and_exact_zeros_above_the_diagonal(
    shape: str, explained: Explained
) -> None:
    model, explanation = explained(shape)

    sizes = (len(explanation.source), len(explanation.target))
    assert len(explanation.self_attention) == model.config.model.encoder_layers
    assert explanation.self_attention[0].weights.shape[1:] == (sizes[0], sizes[0])
    assert explanation.cross_attention[0].weights.shape[1:] == (sizes[1], sizes[0])
    for attention in attentions(explanation):
        np.testing.assert_allclose(attention.weights.sum(axis=2), 1, rtol=0, atol=CLOSE)
        scaled = attention.products / math.sqrt(attention.query.shape[2])
        kept = np.isfinite(attention.scores)
        np.testing.assert_allclose(attention.scores[kept], scaled[kept], rtol=0, atol=CLOSE)
        by_hand = attention.query @ attention.key.transpose(0, 2, 1)
        np.testing.assert_allclose(attention.products, by_hand, rtol=0, atol=1e-5)
    for attention in explanation.masked_self_attention:
        above = np.triu(np.ones(attention.weights.shape[1:], dtype=bool), 1)
        assert (attention.weights[:, above] == 0).all()
        assert np.isneginf(attention.scores[:, above]).all()
        assert np.isfinite(attention.scores[:, ~above]).all()


@every_shape
def test_output_is_reached_from_the_recorded_parts(shape: str, explained: Explained) -> None:
    model, explanation = explained(shape)

    stream = explanation.add_and_norm
    for steps in (stream.encoder, stream.decoder):
        for step, following in itertools.pairwise(steps):
            np.testing.assert_array_equal(step.output, following.input)
        for step in steps:
            np.testing.assert_allclose(step.sum, step.input + step.sublayer, rtol=0, atol=CLOSE)
            normal = (step.before - step.mean_before[:, None]) / np.sqrt(
                step.deviation_before[:, None] ** 2 + 1e-5
            )
            by_hand = normal * step.gain + step.bias
            np.testing.assert_allclose(step.after, by_hand, rtol=0, atol=1e-5)
    last = torch.from_numpy(stream.decoder[-1].output)
    norm = model.transformer.decoder_norm
    with torch.inference_mode():
        logits = model.transformer.logits(last if norm is None else norm(last))
    torch.testing.assert_close(logits, output_of(model, explanation), rtol=0, atol=CLOSE)
    assert stream.batch_difference < 1e-5
    together = explanation.multi_head
    whole = together.contributions.sum(axis=0) + together.output_bias
    np.testing.assert_allclose(whole, together.output, rtol=0, atol=1e-5)
    by_hand = together.concatenated @ together.output_weight + together.output_bias
    np.testing.assert_allclose(by_hand, together.output, rtol=0, atol=1e-5)


@every_shape
def test_order_is_lost_without_positions_only(shape: str, explained: Explained) -> None:
    model, explanation = explained(shape)
    embeddings = explanation.embeddings

    permutation = embeddings.permutation
    assert sorted(permutation.order) == list(range(len(permutation.order)))
    assert permutation.difference.max() < 1e-5
    assert permutation.difference_with_positions.max() > 1e-3
    assert (model.transformer.source_positions is None) == (embeddings.positions is None)
    if embeddings.positions is None:
        np.testing.assert_array_equal(embeddings.embedding, embeddings.input)
    else:
        whole = embeddings.embedding + embeddings.positions
        np.testing.assert_allclose(whole, embeddings.input, rtol=0, atol=CLOSE)
        rows = embeddings.table[: len(embeddings.positions)]
        np.testing.assert_allclose(rows, embeddings.positions, rtol=0, atol=CLOSE)
    assert embeddings.similarity[0] == pytest.approx(1)
    if model.config.model.positions != "learned":  # it depends on the distance only
        spread = embeddings.highest_similarity - embeddings.lowest_similarity
        assert spread.max() < CLOSE


def test_words_are_permuted_as_wholes_and_a_single_word_by_its_pieces() -> None:
    assert reversed_words(["▁a", "b", "▁c", "▁d", "e"]) == [3, 4, 2, 0, 1]
    assert reversed_words(["▁a", "b", "c"]) == [2, 1, 0]
    assert reversed_words([]) == []


@every_shape
def test_lens_of_the_last_layer_is_the_distribution_of_the_model(
    shape: str, explained: Explained
) -> None:
    model, explanation = explained(shape)

    refinement, forcing = explanation.refinement, explanation.teacher_forcing
    with torch.inference_mode():
        run = ForwardPass.of(model, explanation.source.ids[:-1], explanation.target.ids[:-1])
        wanted = output_of(model, explanation).log_softmax(dim=1)
        torch.testing.assert_close(lens(run)[-1], wanted, rtol=0, atol=CLOSE)
    assert len(refinement.layers) == model.config.model.decoder_layers
    last = refinement.target_probability[-1]
    np.testing.assert_allclose(last, forcing.probability, rtol=0, atol=CLOSE)
    best, ids = wanted.exp().topk(5, dim=1)
    np.testing.assert_allclose(refinement.layers[-1].probabilities, best, rtol=0, atol=CLOSE)
    assert refinement.layers[-1].ids == tuple(map(tuple, ids.tolist()))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_sum_to_the_loss_of_training(trained: TrainedModel, smoothing: float) -> None:
    config = dataclasses.replace(
        trained.config,
        training=dataclasses.replace(trained.config.training, label_smoothing=smoothing),
    )
    model = dataclasses.replace(trained, config=config)

    explanation = explain(model, SENTENCE, target="eins drei fünf")

    forcing = explanation.teacher_forcing
    with torch.inference_mode():
        source = torch.tensor([explanation.source.ids])
        memory = model.transformer.encode(source, None)
        read = torch.tensor([explanation.target_input.ids])
        loss, plain = cross_entropy(
            model.transformer.decode(read, memory, None)[0], model.transformer.output_weight,
            torch.tensor(explanation.target.ids), label_smoothing=smoothing,
            bias=model.transformer.output_bias,
        )  # fmt: skip
    assert forcing.is_given
    assert forcing.total_loss == pytest.approx(float(plain), rel=CLOSE)
    assert forcing.smoothed_loss == pytest.approx(float(loss), rel=CLOSE)
    assert float(forcing.loss.sum()) == pytest.approx(forcing.total_loss, rel=CLOSE)


@every_shape
def test_a_change_of_a_later_token_changes_no_earlier_column(
    shape: str, explained: Explained
) -> None:
    forcing = explained(shape)[1].teacher_forcing

    position = forcing.changed_position
    assert position > 0
    assert (forcing.column_difference[: position + 1] == 0).all()
    assert (forcing.column_difference[position + 1 :] > 1e-4).all()


def test_best_leaf_of_the_tree_is_the_translation(found: Explanation, tiny_model: Path) -> None:
    (wanted,) = Translator.load(tiny_model).translate([SENTENCE])

    comparison = found.search.comparison
    finished = [node for node in comparison.tree if node.state == "finished"]
    leaf = max(finished, key=lambda node: node.score)
    assert path_to(leaf, comparison.tree) == list(comparison.beam.tokens.ids)
    assert [node for node in comparison.tree if node.is_best][-1] == leaf
    assert found.translation == comparison.beam.text == wanted.text
    assert leaf.score == pytest.approx(wanted.candidates[0].score, abs=1e-4)
    assert leaf.log_probability == pytest.approx(comparison.beam.log_probability, abs=CLOSE)
    assert -found.teacher_forcing.total_loss == pytest.approx(leaf.log_probability, abs=1e-4)


@pytest.mark.parametrize("name", ["model_v1", "model_v2"])
def test_translation_is_that_of_other_models(name: str) -> None:
    directory = GOLDEN / name
    sentence = (directory / "source.txt").read_text("utf-8").split("\n")[0]
    (wanted,) = Translator.load(directory).translate([sentence])

    explanation = explain(load_model(directory, CPU), sentence)

    assert explanation.translation == wanted.text
    assert explanation.search.comparison.beam.score == pytest.approx(
        wanted.candidates[0].score, abs=1e-4
    )


def path_to(node: Node, tree: tuple[Node, ...]) -> list[int]:
    ids: list[int] = []
    while node.parent >= 0:
        ids.insert(0, node.id)
        node = tree[node.parent]
    return ids


@every_shape
def test_tree_has_the_scores_of_the_search(shape: str, model_of: ModelOf) -> None:
    model = model_of(shape)
    settings = SearchConfig(beam_size=3, length_penalty=0.7, max_length_factor=1)

    comparison = explain(model, SENTENCE, options=ExplainOptions(search=settings)).search.comparison

    tree = comparison.tree
    for node in tree[1:]:
        parent = tree[node.parent]
        assert node.step == parent.step + 1
        assert parent.state == "kept"
        whole = parent.log_probability + node.token_log_probability
        assert node.log_probability == pytest.approx(whole, abs=1e-4)
        assert node.score == pytest.approx(node.log_probability / node.step**0.7, rel=1e-5)
    followed = [node.id for node in tree if node.is_greedy][1:]
    greedy = list(comparison.greedy.tokens.ids)
    assert followed == greedy[: len(followed)]
    assert followed


def test_greedy_steps_keep_keys_and_values(found: Explanation) -> None:
    search, model = found.search, found.model
    heads, width = model.decoder_heads, model.width // model.decoder_heads

    assert search.encoder_passes == 1
    assert search.decoder_passes == len(search.steps) == len(search.comparison.greedy.tokens)
    total = 0.0
    for number, step in enumerate(search.steps, 1):
        assert step.step == number
        assert step.cache_shape == (heads, number, width)
        assert step.memory_shape == (heads, len(found.source), width)
        assert step.cache_numbers == 2 * model.decoder_layers * number * model.width
        assert step.best_pieces[0] == step.chosen
        assert step.best_probabilities[0] == pytest.approx(math.exp(step.log_probability), abs=1e-5)
        total += step.log_probability
    assert total == pytest.approx(search.comparison.greedy.log_probability, abs=1e-5)


def test_example_is_a_sentence_on_which_only_beam_search_is_right(
    model_of: ModelOf, sample: dict[str, Path]
) -> None:
    model = model_of()
    comparisons = [explain(model, each).search.comparison for each in ("one", "two", *LINES[:4])]
    other = next(each for each in comparisons if not each.agree)
    same = next(each for each in comparisons if each.agree)
    write(sample, [same.source, other.source], [same.beam.text, other.beam.text])

    search = explain(model, same.source, options=ExplainOptions(example_seconds=60)).search

    assert search.example is not None
    assert (search.example.source, search.example.reference) == (other.source, other.beam.text)
    assert search.example.beam == other.beam
    assert search.example.greedy == other.greedy
    assert "the shortest such sentence" in search.example_note


@pytest.fixture
def sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Files in place of the sample corpus, by name."""
    files = {
        f"{name}.{side}": tmp_path / f"{name}.{side}"
        for name in ("test", "combinations")
        for side in ("en", "fr")
    }
    for file in files.values():
        file.touch()
    monkeypatch.setattr(search_comparison, "sample_path", lambda name: str(files[name]))
    return files


def write(sample: dict[str, Path], source: list[str], target: list[str]) -> None:
    for side, lines in (("en", source), ("fr", target)):
        text = "".join(f"{line}\n" for line in lines)
        sample[f"test.{side}"].write_text(text, encoding="utf-8", newline="\n")


def test_no_example_is_said_to_be_none(trained: TrainedModel, sample: dict[str, Path]) -> None:
    options = ExplainOptions(example_seconds=60)

    write(sample, ["one two", "three four"], ["eins zwei", "drei vier"])
    right = explain(trained, SENTENCE, options=options).search
    write(sample, ["one two", "three four"], ["un deux", "trois quatre"])
    wrong = explain(trained, SENTENCE, options=options).search
    for file in sample.values():
        file.unlink()
    absent = explain(trained, SENTENCE, options=options).search

    assert [each.example for each in (right, wrong, absent)] == [None] * 3
    assert "there is none where greedy search is wrong" in right.example_note
    assert "translates none of the 2 shortest of the 2" in wrong.example_note
    assert "no example was looked for" in absent.example_note


@pytest.mark.parametrize(
    ("algorithm", "note"),
    [
        ("unigram", ""),
        ("bpe", "when merges are skipped"),
        ("char", "a char tokenizer has one segmentation of a sentence"),
    ],
)
def test_other_segmentations_spell_the_sentence(
    algorithm: str, note: str, model_of: ModelOf
) -> None:
    model = model_of("paper", algorithm)

    first, second = explain(model, SENTENCE), explain(model, SENTENCE)

    section = first.tokenization
    assert first.model.tokenizer == algorithm
    assert note in section.segmentation_note
    assert section == second.tokenization
    assert bool(section.other_segmentations) == (algorithm != "char")
    own = first.source.pieces[:-1]
    for cut in section.other_segmentations:
        assert cut.pieces != own
        assert "".join(cut.pieces).replace("▁", " ").strip() == SENTENCE
        assert model.tokenizers.source.piece_ids(cut.pieces) == list(cut.ids)
    assert len(set(section.other_segmentations)) == len(section.other_segmentations)
    assert len(section.unknown_word_tokens) > 1


def test_tokens_and_both_sides_of_teacher_forcing_belong_together(found: Explanation) -> None:
    assert found.target_input.ids[1:] == found.target.ids[:-1]
    assert found.source.pieces[-1] == "</s>"
    assert not found.teacher_forcing.is_given
    assert found.target_text == found.translation


def test_json_has_every_number(found: Explanation) -> None:
    value = json.loads(json.dumps(found.to_json(), allow_nan=False))

    assert set(value) == {field.name for field in dataclasses.fields(found)}
    weights = np.array(value["self_attention"][0]["weights"])
    np.testing.assert_allclose(weights, found.self_attention[0].weights, rtol=0, atol=CLOSE)
    scores = value["masked_self_attention"][0]["scores"][0]
    assert scores[0][1:] == [None] * (len(scores) - 1)
    assert value["search"]["comparison"]["tree"][0]["parent"] == -1
    assert value["refinement"]["target_rank"][-1] == found.refinement.target_rank[-1].tolist()


HOSTILE = [
    "</script><b>one</b> & \"two\" 'three'",
    "\x1b[31mone\x1b[0m \x07two\u202ethree\u2066",
    "\u0644\u0627 one \u4e00\u4e8c two \U0001f600",
    "a\u2028b\u0085c",
    "x",
]


@pytest.mark.parametrize("sentence", HOSTILE)
def test_hostile_text_is_explained(trained: TrainedModel, sentence: str) -> None:
    explanation = explain(trained, sentence)

    assert explanation.sentence == sentence
    json.dumps(explanation.to_json(), allow_nan=False)


def test_300_tokens_are_explained_and_more_than_the_maximum_refused(trained: TrainedModel) -> None:
    settings = SearchConfig(beam_size=2, max_length_factor=0.05)

    explanation = explain(
        trained, "one two " * 150, target="eins", options=ExplainOptions(search=settings)
    )

    assert len(explanation.source) > 300
    with pytest.raises(DataError, match=rf"the sentence .* at most {MAX_TOKENS}"):
        explain(trained, "one " * (MAX_TOKENS + 1))
    with pytest.raises(DataError, match=r"the target has .* tokens"):
        explain(trained, "one", target="eins " * (MAX_TOKENS + 1))
    with pytest.raises(DataError, match="the sentence is blank"):
        explain(trained, " ")


def test_more_tokens_than_learned_positions_are_refused(model_of: ModelOf) -> None:
    model = model_of("learned, untied")
    transformer = copy.deepcopy(model.transformer)
    transformer.source_positions = LearnedPositions(16, 40)
    transformer.target_positions = LearnedPositions(16, 40)

    with pytest.raises(DataError, match="expected at most 39"):
        explain(dataclasses.replace(model, transformer=transformer), "one two " * 30)


def test_layers_and_heads_that_the_model_lacks_are_refused(model_of: ModelOf) -> None:
    model = model_of("uneven stacks")

    with pytest.raises(ConfigError, match="`--layer 2`: encoder and decoder have 3 and 1 layers"):
        explain(model, SENTENCE, options=ExplainOptions(layer=1))
    with pytest.raises(ConfigError, match="`--head 3`: encoder and decoder have 4 and 2 heads"):
        explain(model, SENTENCE, options=ExplainOptions(head=2))
