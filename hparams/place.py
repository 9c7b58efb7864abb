"""Where a corpus lies: a folder of this machine, or a URL."""

from __future__ import annotations

import re
from pathlib import Path

# Two letters at least: `C://` is a folder elsewhere.
URL_PATTERN = r"^[A-Za-z][A-Za-z0-9+.-]+://.+$"


def is_url(text: str) -> bool:
    """Whether `text` is a URL such as `s3://bucket/fg`. A Path is none: pathlib makes one slash of two."""
    return re.match(URL_PATTERN, text) is not None


def corpus_place(text: str) -> Path | str:
    """The folder that `text` names, or the URL as it was written."""
    return text if is_url(text) else Path(text)
