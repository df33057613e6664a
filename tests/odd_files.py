"""Directory entries that are not private regular files: links, pipes, sockets, folders."""

import os
import socket
from pathlib import Path

KINDS = ("link", "hard link", "dangling link", "pipe", "folder", "socket")


def make_odd(kind: str, place: Path, victim: Path) -> None:
    """Create an entry of one of these kinds.

    Args:
        kind: one of `KINDS`.
        place: its path.
        victim: an existing file that links point to.
    """
    if kind == "link":
        place.symlink_to(victim)
    elif kind == "hard link":
        place.hardlink_to(victim)
    elif kind == "dangling link":
        place.symlink_to(victim.with_name("nowhere"))
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        # The path of a socket is short, so it is made from inside its folder.
        here = os.open(".", os.O_RDONLY)
        os.chdir(place.parent)
        try:
            with socket.socket(socket.AF_UNIX) as each:
                each.bind(place.name)
        finally:
            os.fchdir(here)
            os.close(here)
