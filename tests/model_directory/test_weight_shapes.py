import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from tfm_cli.config.settings import ModelConfig
from tfm_cli.model_directory.weight_shapes import weight_shapes
from tfm_cli.model_directory.weights import build_transformer


@st.composite
def shapes(draw: st.DrawFn) -> tuple[ModelConfig, tuple[int, int]]:
    """Draw a valid shape of the Transformer, and its vocabulary sizes."""
    heads = draw(st.sampled_from((1, 2, 4)))
    config = ModelConfig(
        encoder_layers=draw(st.integers(1, 3)),
        decoder_layers=draw(st.integers(1, 3)),
        width=heads * draw(st.sampled_from((2, 4, 6))),
        heads=heads,
        feed_forward_width=draw(st.integers(1, 9)),
        decoder_heads=draw(st.sampled_from((0, 1))),
        decoder_feed_forward_width=draw(st.integers(0, 9)),
        norm=draw(st.sampled_from(("post", "pre"))),
        positions=draw(
            st.sampled_from(
                ("sinusoidal", "sinusoidal_halves", "sinusoidal_marian", "learned", "rotary")
            )
        ),
        max_positions=draw(st.integers(2, 9)),
        activation=draw(st.sampled_from(("relu", "gelu", "swish", "swiglu"))),
        tied_embeddings=draw(st.integers(0, 3)),
        output_bias=draw(st.booleans()),
    )
    target_size = draw(st.integers(2, 12))
    source_size = target_size if config.tied_embeddings & 1 else draw(st.integers(2, 12))
    return config, (source_size, target_size)


@settings(max_examples=200, deadline=None)
@given(shapes())
def test_weights_have_the_names_and_shapes_of_the_transformer(
    case: tuple[ModelConfig, tuple[int, int]],
) -> None:
    config, vocab_sizes = case

    built = build_transformer(config, vocab_sizes).state_dict()

    expected = [(name, tuple(tensor.shape)) for name, tensor in built.items()]
    assert list(weight_shapes(config, vocab_sizes).items()) == expected


def test_shapes_need_no_pytorch() -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['numpy'] = None\n"
        "from tfm_cli.config.settings import ModelConfig\n"
        "from tfm_cli.model_directory.weight_shapes import weight_shapes\n"
        "print(len(weight_shapes(ModelConfig(), (9, 9))))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == f"{1 + 6 * 12 + 6 * 18}\n"
