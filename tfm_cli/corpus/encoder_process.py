"""A process that encodes blocks: `python -m tfm_cli.corpus.encoder_process`.

It reads what to do from its standard input, answers on its standard output, and ends when nobody
has more for it. Nothing that it imports needs PyTorch.
"""

import os
import sys
from typing import BinaryIO

from tfm_cli.corpus import messages
from tfm_cli.corpus.encoding import encode_block
from tfm_cli.corpus.messages import read_frame, write_frame
from tfm_cli.errors import DataError


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer blocks until there are no more; the first message says how to encode them."""
    first = read_frame(requests)
    if first is None:
        return
    tokenizers, filters = messages.to_work(first)
    while (frame := read_frame(requests)) is not None:
        try:
            found = encode_block(messages.to_block(frame), tokenizers, filters, threads=1)
            answer = messages.of_encoded(found)
        except DataError as error:
            answer = messages.of_error(error)
        write_frame(answers, *answer)


if __name__ == "__main__":
    # What a library prints must not come between the answers.
    with os.fdopen(os.dup(1), "wb") as own:
        os.dup2(2, 1)
        try:
            serve(sys.stdin.buffer, own)
        except (EOFError, BrokenPipeError):  # the process that asked is no more
            os._exit(1)
