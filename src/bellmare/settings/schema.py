"""``python -m bellmare.settings.schema [DIRECTORY]``: writes the JSON schema and the table of settings to docs."""

import json
import sys
from pathlib import Path

from bellmare.settings.describe import settings_schema, settings_table


def documents() -> dict[str, str]:
    """The generated files by name."""
    return {
        "bellmare.schema.json": json.dumps(settings_schema(), indent=2) + "\n",
        "settings.md": settings_table(),
    }


def main(arguments: list[str]) -> int:
    directory = Path(arguments[0] if arguments else "docs")
    for name, text in documents().items():
        (directory / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
