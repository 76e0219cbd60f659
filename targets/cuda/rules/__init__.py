"""Lowering rules: which kernel computes which operator."""

from pwopt.targets import data
from pwopt.targets.cuda.rules import conv, elementwise, matrix, resize, windows
from pwopt.targets.lowering import Rule

RULES: dict[tuple[str, str], Rule] = {
    **data.RULES,
    **elementwise.RULES,
    **windows.RULES,
    **resize.RULES,
    **matrix.RULES,
    **conv.RULES,
}
