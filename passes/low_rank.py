"""Low-rank factors of layers, as the data see them: plain linear algebra on moments.

Responses of a layer over many pixels lie near a subspace; projecting onto it splits the layer into
one with fewer output channels and a 1x1 back. Inputs do, too, as far as the layer looks at them.

Sources: Zhang, Zou, He, Sun, "Accelerating Very Deep Convolutional Networks for Classification and
Detection", TPAMI 2016 (responses, asymmetric fit); Kim et al., "Compression of Deep Convolutional
Neural Networks for Fast and Low Power Mobile Applications", ICLR 2016 (both sides of a kernel).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Basis:
    """A subspace for every rank: the first so many columns.

    Attributes:
        reduce: (channels, channels), rows to project by, the most important first.
        expand: (channels, channels), columns that undo it.
        error: (channels + 1,), share of the energy that is lost with so many kept; falls to 0.
    """

    reduce: np.ndarray
    expand: np.ndarray
    error: np.ndarray


def output_basis(moment: np.ndarray) -> Basis:
    """The principal directions of responses.

    Args:
        moment: (channels, channels), their covariance.
    """
    values, vectors = np.linalg.eigh(moment)
    order = vectors[:, ::-1]
    return Basis(order.T, order, _tail(np.maximum(values[::-1], 0.0)))


def input_basis(moment: np.ndarray, kernel: np.ndarray) -> Basis:
    """The directions of inputs that a kernel answers to most.

    With second moments C of a pixel's channels and G = sum of w wᵀ over the kernel's filters and
    taps, keeping the projection P costs ‖G^½ (1 - P) C^½‖² where pixels are uncorrelated; the best
    one follows from the singular vectors of G^½ C^½.

    Args:
        moment: (channels, channels), not centered: a shift would not reach a padded border.
        kernel: (filters, channels, taps).
    """
    gram = np.tensordot(kernel, kernel, ([0, 2], [0, 2]))
    root, inverse = _roots(gram)
    other, _ = _roots(moment)
    left, values, _ = np.linalg.svd(root @ other)
    return Basis(left.T @ root, inverse @ left, _tail(values**2))


def fit_expansion(
    inside: np.ndarray, wanted: np.ndarray, prior: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The 1x1 that gets nearest to what the layer answered, and its bias.

    Ridge regression towards ``prior``, which prevails where there are few rows.

    Args:
        inside: (rows, rank), responses of the narrow layer in the network as it is now.
        wanted: (rows, channels), responses of the original network.
        prior: (channels, rank).

    Returns:
        weights (channels, rank) and bias (channels,).
    """
    mean, target = inside.mean(axis=0), wanted.mean(axis=0)
    z, y = inside - mean, wanted - target
    rows, rank = z.shape
    gram = z.T @ z
    ridge = (np.trace(gram) / rank + np.finfo(np.float32).tiny) * min(1.0, rank / rows)
    weights = np.linalg.solve(gram + ridge * np.eye(rank), z.T @ y + ridge * prior.T).T
    return weights, target - weights @ mean


def shrunk(moment: np.ndarray, prior: np.ndarray, rows: int) -> np.ndarray:
    """A moment from few rows, drawn towards what is known without data, of the same trace."""
    scale = np.trace(moment) / (np.trace(prior) or 1.0)
    share = min(1.0, 0.1 * len(moment) / rows)
    made: np.ndarray = (1.0 - share) * moment + share * scale * prior
    return made


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    """Squared error over the variance of what was wanted."""
    variance = float(np.sum((wanted - wanted.mean(axis=0)) ** 2))
    return float(np.sum((found - wanted) ** 2)) / (variance or 1.0)


def _roots(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The square root of a positive semidefinite matrix, and that one's pseudo-inverse."""
    values, vectors = np.linalg.eigh(matrix)
    roots = np.sqrt(np.maximum(values, 0.0))
    safe = roots > 1e-7 * (roots.max(initial=0.0) or 1.0)
    inverse = np.where(safe, 1.0 / np.where(safe, roots, 1.0), 0.0)
    return (vectors * roots) @ vectors.T, (vectors * inverse) @ vectors.T


def _tail(energies: np.ndarray) -> np.ndarray:
    """What is lost with 0, 1, ... of them kept, as a share."""
    total = float(energies.sum()) or 1.0
    kept = np.concatenate([[0.0], np.cumsum(energies)])
    made: np.ndarray = np.maximum(1.0 - kept / total, 0.0)
    made[-1] = 0.0
    return made
