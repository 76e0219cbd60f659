"""Pages on disk: a comparison goes on from the page of the optimization."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from pwopt.errors import PwoptError
from pwopt.output import PAGE, REPORT, is_ours
from pwopt.page.content import SCHEMA, Content

if TYPE_CHECKING:
    from pwopt.comparison import Comparison

_CONTENT = re.compile(r'<script type="application/json" id="content">(.*?)</script>', re.DOTALL)


def read(page: Path) -> Content | None:
    """The content of a page; None where there is none of this version of pwopt."""
    try:
        found = _CONTENT.search(page.read_text())
        content = json.loads(found.group(1)) if found else None
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("schema") == SCHEMA else None


def write_comparison(table: Comparison, compiled: Path, page: Path | None) -> Path | None:
    """Writes the page of a comparison, with what is known of the optimization.

    Args:
        table: the comparison.
        compiled: the folder that ``pwopt optimize`` wrote, or an executable.
        page: where to; the folder's own ``report.html`` if left out.

    Returns:
        where it was written; None without ``page`` where pwopt did not write the folder.

    Raises:
        PwoptError: the page cannot be written.
    """
    folder = compiled if compiled.is_dir() else compiled.parent
    ours = is_ours(folder / REPORT)
    if page is None and not ours:
        return None
    page = page or folder / PAGE
    text = table.html(folder / PAGE if ours else None)
    partial = page.with_name(f".{page.name}.{os.getpid()}.tmp")
    try:
        partial.write_text(text)
        partial.replace(page)
    except OSError as error:
        raise PwoptError(f"{page}: cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    return page
