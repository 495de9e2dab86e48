"""The process that runs a back-end which holds the GIL: jobs come in on stdin, diagrams go out on stdout.

Run as a script by `process.ProcessRips`: it loads numpy and ripser and nothing of topoopt or torch. A message is a
length (8 bytes, little endian) and a pickle; both ends are the same program on the same machine.
"""

from __future__ import annotations

import os
import pickle
import struct
import sys
from typing import Any, BinaryIO


def read_message(stream: BinaryIO) -> Any:
    """Return the next message, or None at the end of the stream."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    (size,) = struct.unpack("<Q", head)
    body = stream.read(size)
    return pickle.loads(body) if len(body) == size else None


def write_message(stream: BinaryIO, message: Any) -> None:
    """Send one message."""
    body = pickle.dumps(message, protocol=5)
    stream.write(struct.pack("<Q", len(body)))
    stream.write(body)
    stream.flush()


def main() -> None:
    """Serve until stdin closes: (distances, degree) -> (diagrams, "") or (None, error)."""
    import ripser

    jobs, results = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not end up between the messages
    while (job := read_message(jobs)) is not None:
        distances, degree = job
        try:
            diagrams = ripser.ripser(distances, maxdim=degree, distance_matrix=True)["dgms"]
            write_message(results, ([d.astype("float64").reshape(-1, 2) for d in diagrams], ""))
        except Exception as error:
            write_message(results, (None, f"{type(error).__name__}: {error}"))


if __name__ == "__main__":
    main()
