"""Lowering rules: which kernel computes which operator."""

from pwopt.targets import data, rules
from pwopt.targets.cpu.rules import conv, matrix, transposed, windows
from pwopt.targets.lowering import Rule

RULES: dict[tuple[str, str], Rule] = {
    **data.RULES,
    **rules.RULES,
    **windows.RULES,
    **matrix.RULES,
    **conv.RULES,
    **transposed.RULES,
}
