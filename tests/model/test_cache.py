import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.model.small_transformers import transformer as transformer_of
from tfm_cli.model.cache import DecoderState, LayerCache
from tfm_cli.model.transformer import Transformer

VOCAB, BEAM = 20, 3

SOURCE = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 2, 2, 2], [10, 11, 12, 2, 2]])
SOURCE_KEEP = (torch.arange(5) < torch.tensor([5, 2, 3])[:, None])[:, None, None, :]  # (B, 1, 1, S)


def small_model(
    *,
    norm: str = "post",
    positions: str = "sinusoidal",
    activation: str = "relu",
    tied: int = 3,
    depths: tuple[int, int] = (1, 2),
) -> Transformer:
    torch.manual_seed(1)
    return (
        transformer_of(
            VOCAB,
            encoder_layers=depths[0],
            decoder_layers=depths[1],
            width=8,
            heads=2,
            feed_forward_width=12,
            norm=norm,
            positions=positions,
            max_positions=8,
            activation=activation,
            tied_embeddings=tied,
        )
        .double()
        .eval()
    )


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def written_state(*, rows: int, segments: int) -> DecoderState:
    """A state of two layers and four steps."""
    layers = [
        LayerCache(
            draw(segments, 2, 5, 3, seed=seed),
            draw(segments, 2, 5, 3, seed=seed + 10),
            draw(rows, 2, 4, 3, seed=seed + 20),
            draw(rows, 2, 4, 3, seed=seed + 30),
        )
        for seed in (1, 2)
    ]
    return DecoderState(SOURCE_KEEP[:segments], layers, 4)


def copied(state: DecoderState) -> list[dict[str, Tensor]]:
    names = ("memory_key", "memory_value", "key", "value")
    return [{name: getattr(layer, name).clone() for name in names} for layer in state.layers]


def test_append_adds_a_step_to_those_before() -> None:
    layer = LayerCache(draw(1, 2, 5, 3), draw(1, 2, 5, 3))
    keys, values = draw(4, 2, 3, 3, seed=1), draw(4, 2, 3, 3, seed=2)

    for step in range(3):
        now = slice(step, step + 1)
        result = layer.append(keys[:, :, now], values[:, :, now])

        assert torch.equal(result[0], keys[:, :, : step + 1])
        assert torch.equal(result[1], values[:, :, : step + 1])


@pytest.mark.parametrize("parents", [[[1, 0], [0, 0], [1, 1]], [[1], [0], [1]], [[0, 1, 1]] * 3])
def test_reorder_lets_each_beam_go_on_from_another_of_its_segment(parents: list[list[int]]) -> None:
    state = written_state(rows=6, segments=3)
    before = copied(state)

    state.reorder(torch.tensor(parents))

    rows = [2 * segment + beam for segment, beams in enumerate(parents) for beam in beams]
    for layer, old in zip(state.layers, before, strict=True):
        assert layer.key is not None
        assert layer.value is not None
        assert torch.equal(layer.key, old["key"][rows])
        assert torch.equal(layer.value, old["value"][rows])
        assert torch.equal(layer.memory_key, old["memory_key"])
    assert state.length == 4


def test_reorder_before_the_first_step_has_nothing_to_do() -> None:
    state = small_model().start(SOURCE, SOURCE_KEEP)

    state.reorder(torch.tensor([[0], [0], [0]]))

    assert [layer.key for layer in state.layers] == [None, None]


@pytest.mark.parametrize("segments", [[0, 2], [1], [2, 1, 0]])
def test_keep_leaves_the_segments_with_their_beams_and_no_other(segments: list[int]) -> None:
    state = written_state(rows=6, segments=3)
    before = copied(state)

    state.select(torch.tensor(segments))

    assert state.source_keep is not None
    assert torch.equal(state.source_keep, SOURCE_KEEP[segments])
    for layer, old in zip(state.layers, before, strict=True):
        assert torch.equal(layer.memory_key, old["memory_key"][segments])
        assert torch.equal(layer.memory_value, old["memory_value"][segments])
        assert layer.key is not None
        expected = old["key"].view(3, 2, *old["key"].shape[1:])[segments]
        assert torch.equal(layer.key, expected.flatten(0, 1))


def test_beams_share_the_memory_of_their_segment() -> None:
    model = small_model()
    state = model.start(SOURCE, SOURCE_KEEP)
    model.step(torch.tensor([1, 1, 1]), state)
    state.reorder(torch.zeros(3, BEAM, dtype=torch.long))

    model.step(torch.arange(9), state)

    assert [layer.memory_key.shape[0] for layer in state.layers] == [3, 3]
    assert [layer.key.shape[0] for layer in state.layers if layer.key is not None] == [9, 9]
    assert state.length == 2


@pytest.mark.parametrize("depths", [(1, 2), (2, 1)])
@pytest.mark.parametrize("tied", [0, 2, 3])
@pytest.mark.parametrize("activation", ["relu", "gelu", "swiglu"])
@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rotary"])
@pytest.mark.parametrize("norm", ["post", "pre", "deepnorm"])
@torch.inference_mode()
def test_cached_logits_equal_teacher_forced_ones_while_beams_split_swap_and_end(
    norm: str, positions: str, activation: str, tied: int, depths: tuple[int, int]
) -> None:
    model = small_model(
        norm=norm, positions=positions, activation=activation, tied=tied, depths=depths
    )
    pieces = torch.Generator().manual_seed(1)
    state = model.start(SOURCE, SOURCE_KEEP)
    segments = torch.arange(3)  # those still open
    written = torch.ones(3, 1, dtype=torch.long)  # (R, t): what each row has read

    def check() -> None:
        """The logits after the last token, with caches and without."""
        beam = len(written) // len(segments)
        of_row = segments.repeat_interleave(beam)
        cached = model.step(written[:, -1], state)
        forced = model(SOURCE[of_row], SOURCE_KEEP[of_row], written)
        # Doubles through three layers; products of other shapes are summed in another order.
        assert_close(cached, forced[:, -1], rtol=0, atol=1e-10)

    def go_on(parents: list[list[int]]) -> None:
        """Each row becomes what `parents` says, and gets a new piece."""
        nonlocal written
        state.reorder(torch.tensor(parents))
        beam = len(written) // len(parents)
        rows = [
            beam * segment + place for segment, places in enumerate(parents) for place in places
        ]
        new = torch.randint(3, VOCAB, (len(rows), 1), generator=pieces)
        written = torch.cat((written[rows], new), dim=1)

    check()
    go_on([[0, 0, 0]] * 3)  # one row a segment becomes three
    check()
    go_on([[2, 0, 0], [2, 1, 0], [0, 0, 0]])  # rows swap within a segment, or end
    check()
    segments = torch.tensor([0, 2])  # the second segment is done
    state.select(segments)
    written = torch.cat((written[:3], written[6:]))
    go_on([[1, 2, 0], [2, 0, 0]])
    check()
    go_on([[0, 1, 2]] * 2)
    check()


@pytest.mark.parametrize("source_keep", [SOURCE_KEEP, None], ids=["padded", "whole"])
@torch.inference_mode()
def test_every_step_of_a_given_target_equals_the_forward_pass(source_keep: Tensor | None) -> None:
    model = small_model(depths=(2, 2))
    target = torch.tensor([[1, 4, 5, 6, 7, 8], [1, 9, 9, 9, 3, 2], [1, 19, 18, 17, 16, 15]])

    state = model.start(SOURCE, source_keep)
    steps = [model.step(target[:, at], state) for at in range(6)]

    forced = model(SOURCE, source_keep, target)
    # Doubles through four layers; products of other shapes are summed in another order.
    assert_close(torch.stack(steps, dim=1), forced, rtol=0, atol=1e-10)
    assert state.length == 6


@torch.inference_mode()
def test_a_translation_beyond_the_learned_positions_is_refused() -> None:
    model = small_model(positions="learned")
    state = model.start(SOURCE, SOURCE_KEEP)
    for _ in range(8):
        model.step(torch.tensor([1, 1, 1]), state)

    with pytest.raises(ValueError, match="has 8 learned positions, the segment needs 9"):
        model.step(torch.tensor([1, 1, 1]), state)
