"""Whether a video file is as long as it says, by the structure of its container alone.

FFmpeg reads what is there of a truncated file and says nothing. MP4 needs no look: its table of samples tells FFmpeg
what is missing. Sources: RFC 8794 (EBML) and RFC 9559 (Matroska), Microsoft's AVI RIFF reference, GIF89a.
"""

from __future__ import annotations

from pathlib import Path

_EBML, _SEGMENT = bytes.fromhex("1a45dfa3"), bytes.fromhex("18538067")
_HEAD = 4096


def truncated(path: Path, container: str) -> bool:
    """Whether the file is shorter than its container says.

    Args:
        path: the file.
        container: FFmpeg's name of its container.

    Raises:
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if container == "gif":  # no length anywhere, but a trailer
            file.seek(max(0, size - 64))
            return not file.read().rstrip(b"\0").endswith(b";")
        head = file.read(_HEAD)
    if container == "avi":
        return head[:4] == b"RIFF" and int.from_bytes(head[4:8], "little") + 8 > size
    return container == "matroska" and _matroska_end(head) > size


def _matroska_end(head: bytes) -> int:
    """Where the segment of a Matroska file ends; 0 where that is not said, as in a live stream."""
    if head[:4] != _EBML:
        return 0
    length, at = _number(head, 4)
    if length is None or head[at + length : at + length + 4] != _SEGMENT:
        return 0
    length, at = _number(head, at + length + 4)
    return 0 if length is None else at + length


def _number(data: bytes, at: int) -> tuple[int | None, int]:
    """An EBML number of variable length, None where it is "unknown", and where it ends."""
    first = data[at] if at < len(data) else 0
    width = 9 - first.bit_length()
    if first == 0 or at + width > len(data):
        return None, at
    value = int.from_bytes(data[at : at + width]) & ((1 << 7 * width) - 1)
    return (None if value == (1 << 7 * width) - 1 else value), at + width
