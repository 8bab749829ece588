"""Pure codecs, bytes in and values out: names, dialects, framing, errors."""
