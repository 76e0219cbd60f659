"""``report.html``: one page, everything inside it, of an optimization and its measurements."""

from pwopt.page.content import Content, of_comparison, of_optimization
from pwopt.page.files import read, write_comparison
from pwopt.page.render import render

__all__ = ["Content", "of_comparison", "of_optimization", "read", "render", "write_comparison"]
