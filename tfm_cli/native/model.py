"""A model in the engine: packed weights from a model directory, without PyTorch, or from memory."""

from __future__ import annotations

import ctypes
import mmap
import weakref
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfm_cli.config.settings import ModelConfig, RunConfig
from tfm_cli.decoding.interface import NonFiniteScoresError
from tfm_cli.errors import ResourceError
from tfm_cli.files.safetensors_file import SafetensorsFile
from tfm_cli.model_directory.config_file import (
    SavedConfig,
    changed_weights_error,
    load_config,
    load_tokenizers,
    opened_weights,
)
from tfm_cli.model_directory.weight_shapes import (
    SCALES,
    Shape,
    check_header,
    is_verified,
    non_finite_weights_error,
    weight_shapes,
)
from tfm_cli.native.library import (
    ACTIVATIONS,
    NO_MEMORY,
    NON_FINITE,
    NORMS,
    OK,
    POSITIONS,
    PRECISIONS,
    Library,
    ModelOptions,
    load,
)
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

_LARGE_BYTES = 1 << 24  # of a tensor whose buffer is freed at once


class NativeModel:
    """A Transformer in the memory of the engine, which threads and forked processes share.

    Attributes:
        library: of the engine.
        config: the settings of the model.
        tokenizers: of the model.
        name: its name in messages.
        precision: of the matrix products.
        num_bytes: the memory of the packed weights.
    """

    def __init__(
        self,
        library: Library,
        config: RunConfig,
        tokenizers: TokenizerPair,
        *,
        precision: str,
        name: str,
    ) -> None:
        """Create an empty model; `load` and `from_weights` add the weights."""
        self.library, self.config, self.tokenizers, self.name = library, config, tokenizers, name
        self.num_bytes = 0
        self.precision = precision
        handle = ctypes.c_void_p()
        options = _options(config.model, tokenizers, precision)
        self._check(library.functions.tfm_model_new(options, handle))
        self._handle = handle
        self._free = weakref.finalize(self, library.functions.tfm_model_free, handle)
        self._free.atexit = False  # the system frees memory faster at exit

    @staticmethod
    def load(
        directory: Path, *, precision: str = "fp32", library: Library | None = None
    ) -> NativeModel:
        """Return the model in a directory.

        Args:
            directory: a model directory, as `tfm train` and `tfm import` write it.
            precision: `fp32`, `bf16` or `int8`, of the matrix products.
            library: of the engine; None for the best one for this processor.

        Raises:
            ModelError: a file is missing, damaged, of a newer format, or does not match the others;
                the message gives the file, the actual and the expected value.
            ResourceError: there is no engine, or no memory for the weights.
        """
        saved = load_config(directory)
        tokenizers = load_tokenizers(directory, saved)
        model = NativeModel(
            library or load(), saved.settings, tokenizers, precision=precision, name=str(directory)
        )
        try:
            with opened_weights(directory) as (path, file):
                model._read(path, file, saved)
        except MemoryError as error:
            raise model._no_memory() from error
        model._finish()
        return model

    @staticmethod
    def from_weights(
        weights: Mapping[str, Tensor],
        config: RunConfig,
        tokenizers: TokenizerPair,
        *,
        precision: str = "fp32",
        name: str = "the model",
        library: Library | None = None,
    ) -> NativeModel:
        """Return the model with these weights, such as a Transformer's `state_dict`.

        Args:
            weights: by name, on any device; other names are ignored.
            config: the settings of the model.
            tokenizers: of the model.
            precision: as for `load`.
            name: its name in messages.
            library: as for `load`.

        Raises:
            NonFiniteScoresError: a weight is not a finite number.
            ResourceError: there is no engine, or no memory for the weights.
        """
        model = NativeModel(library or load(), config, tokenizers, precision=precision, name=name)
        for weight, shape in weight_shapes(config.model, tokenizers.vocab_sizes).items():
            # A contiguous fp32 tensor on the CPU is not copied.
            tensor = weights[weight].detach().cpu().float().contiguous()
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{weight} has shape {tuple(tensor.shape)}, expected {shape}")
            if not model._pack(weight, shape, tensor.data_ptr()):
                raise NonFiniteScoresError(f"{weight} has values that are no finite numbers")
        model._finish()
        return model

    @property
    def handle(self) -> ctypes.c_void_p:
        """Return the pointer to the engine's model."""
        if not self._free.alive:
            raise ValueError(f"{self.name}: the model was closed")
        return self._handle

    def close(self) -> None:
        """Free the weights before the object is garbage-collected; no search may be running."""
        self._free()

    def _read(self, path: Path, file: SafetensorsFile, saved: SavedConfig) -> None:
        """Pack the weights of a file, a tensor at a time, while a thread hashes the file."""
        metadata = check_header(path, file, saved, precision=self.precision)
        sha256 = None if is_verified(metadata) else file.hash_in_background()
        shapes = weight_shapes(saved.settings.model, saved.vocab_sizes)
        size = {name: file.tensors[name].end - file.tensors[name].begin for name in shapes}
        bad, buffer = set(), None
        # The largest come first, while few weights are packed, for a low peak of memory.
        for name in sorted(shapes, key=lambda name: -size[name]):
            if buffer is None or len(buffer) > _LARGE_BYTES:
                buffer = None  # freed before the next allocation
                buffer = _Buffer(size[name])
            file.read_tensor(name, buffer.view)
            scales = None
            if file.tensors[name].dtype == "I8":
                scales = _Buffer(4 * shapes[name][0])
                file.read_tensor(name + SCALES, scales.view)
            if not self._pack(name, shapes[name], buffer.address, scales=scales):
                bad.add(name)
        is_saved = sha256 is None or sha256() == metadata.get("weights_sha256")
        file.check_unchanged()
        if not is_saved:
            raise changed_weights_error(path)
        if bad:
            raise non_finite_weights_error(path, [name for name in shapes if name in bad])

    def _pack(
        self, name: str, shape: Shape, address: int, *, scales: _Buffer | None = None
    ) -> bool:
        """Pack a tensor; return False if a value is not a finite number.

        Args:
            name: of the tensor.
            shape: of the tensor.
            address: of its fp32 numbers, or of its int8 numbers if there are scales.
            scales: of its rows, if the tensor is in int8.
        """
        functions, (rows, columns) = self.library.functions, (*shape, 0)[:2]
        if scales is None:
            status = functions.tfm_model_tensor(self._handle, name.encode(), address, rows, columns)
        else:
            status = functions.tfm_model_int8_tensor(
                self._handle, name.encode(), address, scales.address, rows, columns
            )
        if status == NON_FINITE:
            return False
        self._check(status)
        return True

    def _finish(self) -> None:
        target, functions = self.tokenizers.target, self.library.functions
        banned = array("i", target.banned_ids)
        address, count = banned.buffer_info()
        banned_ids = ctypes.cast(address, ctypes.POINTER(ctypes.c_int32))
        self._check(
            functions.tfm_model_vocabulary(self._handle, banned_ids, count, _byte_values(target))
        )
        self._check(functions.tfm_model_finish(self._handle))
        self.num_bytes = functions.tfm_model_bytes(self._handle)

    def _check(self, status: int) -> None:
        if status == NO_MEMORY:
            raise self._no_memory()
        if status != OK:
            raise RuntimeError(error_of(self.library, status))

    def _no_memory(self) -> ResourceError:
        hint = "use `--precision int8`, which needs about a quarter of what fp32 does"
        return ResourceError(f"{self.name}: there is no memory for its weights", hint=hint)


class _Buffer:
    """Memory for a tensor that is read from a file; freed with the object.

    Raises:
        MemoryError: the allocation failed.
    """

    def __init__(self, size: int) -> None:
        try:
            # Unlike a bytearray, it takes no time to fill with zeros.
            self._memory = mmap.mmap(-1, size)
        except OSError as error:
            raise MemoryError from error
        self.view = memoryview(self._memory)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))

    def __len__(self) -> int:
        return len(self._memory)


def error_of(library: Library, status: int) -> str:
    """Return the engine's message for the last call, which returned this status."""
    message = library.functions.tfm_error() or b""
    return f"{library.path.name}: status {status}: {message.decode(errors='replace')}"


def _options(shape: ModelConfig, tokenizers: TokenizerPair, precision: str) -> ModelOptions:
    source_size, target_size = tokenizers.vocab_sizes
    return ModelOptions(
        encoder_layers=shape.encoder_layers,
        decoder_layers=shape.decoder_layers,
        width=shape.width,
        encoder_heads=shape.encoder.heads,
        decoder_heads=shape.decoder.heads,
        encoder_feed_forward_width=shape.encoder.feed_forward_width,
        decoder_feed_forward_width=shape.decoder.feed_forward_width,
        source_vocab_size=source_size,
        target_vocab_size=target_size,
        norm=NORMS[shape.norm],
        activation=ACTIVATIONS[shape.activation],
        positions=POSITIONS[shape.positions],
        max_positions=shape.max_positions,
        tied_embeddings=shape.tied_embeddings,
        scale_embeddings=shape.scale_embeddings,
        output_bias=shape.output_bias,
        start_id=tokenizers.target.start_id,
        eos_id=tokenizers.target.eos_id,
        precision=PRECISIONS[precision],
    )


def _byte_values(target: Tokenizer) -> Any:
    """Return the byte that each token stands for, or -1, as an array; None without byte tokens."""
    by_id = target.byte_values
    if not by_id:
        return None
    values = (ctypes.c_int16 * target.vocab_size)(*[-1] * target.vocab_size)
    for token, value in by_id.items():
        values[token] = value
    return values
