"""Weights that compute no finite numbers are reported as a fault of their model."""

import contextlib
from collections.abc import Iterator

from tfm_cli.decoding.hypothesis import NonFiniteScoresError
from tfm_cli.errors import ModelError


@contextlib.contextmanager
def useless_weights_refused(name: str) -> Iterator[None]:
    """Raise a ModelError that names the model where its scores are not finite numbers.

    Args:
        name: what messages call the model, or the models that translate together.
    """
    try:
        yield
    except NonFiniteScoresError as error:
        raise ModelError(
            f"{name}: the weights are of no use: {error}",
            hint="use another model or an earlier checkpoint; the training may have diverged",
        ) from error
