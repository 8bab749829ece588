"""How large a picture says it is, from its first bytes: a few bytes of file can ask for gigabytes of a worker's memory.

Knows headers only and decodes nothing. What it does not recognise it does not judge: that is the worker's to refuse.
"""

import binascii

PIXELS_MAX = 100_000_000
"""0.4 GB once decoded; models scale pictures down to a few megapixels, and cameras make up to 60."""
IMAGES_MAX = 256
"""In one request: more than any model's context holds, at some hundred tokens each."""
_SNIFF_CHARS = 64 << 10
"""Of base64; a JPEG's size stands behind its thumbnail and profile, mostly within 48 KiB."""
_JPEG_SIZES = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})


def pixels(image: str) -> int:
    """Width times height of a PNG, GIF, JPEG, WebP or BMP in standard base64; 0 if that cannot be told."""
    begin = image[:_SNIFF_CHARS].replace("\r", "").replace("\n", "")
    try:
        data = binascii.a2b_base64(begin[: len(begin) // 4 * 4])
    except (binascii.Error, ValueError):
        return 0
    width, height = _size(data)
    return width * height


def _size(data: bytes) -> tuple[int, int]:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _big(data[16:20]), _big(data[20:24])
    if data.startswith((b"GIF87a", b"GIF89a")):
        return _little(data[6:8]), _little(data[8:10])
    if data.startswith(b"BM"):
        return _little(data[18:22]), _little(data[22:26])
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data)
    return 0, 0


def _webp(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return _little(data[24:27]) + 1, _little(data[27:30]) + 1
    if kind == b"VP8L":
        bits = _little(data[21:25])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return _little(data[26:28]) & 0x3FFF, _little(data[28:30]) & 0x3FFF


def _jpeg(data: bytes) -> tuple[int, int]:
    """Goes from segment to segment up to the one that tells the size."""
    position = 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        kind = data[position + 1]
        if kind in _JPEG_SIZES:
            return _big(data[position + 7 : position + 9]), _big(data[position + 5 : position + 7])
        position += 1 if kind == 0xFF else 2 + max(2, _big(data[position + 2 : position + 4]))
    return 0, 0


def _big(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")
