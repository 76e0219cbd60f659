"""The picture of a layer's channels shows the numbers that it was given."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from pwopt.errors import PwoptError
from pwopt.pictures import style
from pwopt.pictures.channels import Chain, Channels, directions, draw_channels, singular_values

RNG = np.random.default_rng(0)
MATRIX = RNG.standard_normal((32, 192)).astype(np.float32)
PLAIN = Channels("Conv 'c'", "c", 4_816_896, Chain((192, 32), ("1x1",)), matrix=MATRIX)


def panel(figure: Figure, title: str) -> Axes:
    (found,) = (a for a in figure.axes if a.get_title(loc="left").startswith(title))
    return found


def bars(axes: Axes) -> list[float]:
    (found,) = (c for c in axes.containers if isinstance(c, BarContainer))
    return [bar.get_height() for bar in found.patches]


def lines(figure: Figure) -> dict[str, np.ndarray]:
    """Named lines; of a vertical one its place."""
    return {
        str(line.get_label()): np.asarray(line.get_xydata())
        for axes in figure.axes
        for line in axes.get_lines()
    }


def test_bars_are_the_numbers_of_channels() -> None:
    axes = panel(draw_channels(PLAIN, "c"), "channels")
    assert bars(axes) == [192, 32]
    assert [t.get_text() for t in axes.texts] == ["1x1", "192", "32"]


def test_the_heat_map_is_the_matrix_on_a_symmetric_scale() -> None:
    (image,) = panel(draw_channels(PLAIN, "c"), "mixing matrix").get_images()
    np.testing.assert_array_equal(image.get_array(), MATRIX)
    low, high = image.get_clim()
    assert low == -high
    assert 0 < high <= np.abs(MATRIX).max()


def test_the_spectrum_is_that_of_the_singular_value_decomposition() -> None:
    figure = draw_channels(PLAIN, "c")
    wanted = np.linalg.svd(MATRIX.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(bars(panel(figure, "singular values")), wanted, rtol=1e-9)
    energy = np.cumsum(wanted**2) / np.sum(wanted**2)
    np.testing.assert_allclose(lines(figure)["weights"][:, 1], energy, rtol=1e-9)
    assert lines(figure)["weights"][0, 0] == 1


def test_the_chosen_rank_is_between_what_is_kept_and_what_is_not() -> None:
    spectrum = tuple(np.geomspace(0.5, 1e-3, 32) / np.geomspace(0.5, 1e-3, 32).sum())
    after = Chain((192, 16, 32), ("1x1", "1x1"))
    layer = Channels(
        "Conv 'c'", "c", 1, PLAIN.before, after, MATRIX, rank_out=16, spectrum=spectrum
    )
    figure = draw_channels(layer, "c")
    assert lines(figure)["16 kept"][:, 0].tolist() == [16.5, 16.5]
    np.testing.assert_allclose(lines(figure)["responses"][:, 1], np.cumsum(spectrum))
    chains = [bars(a) for a in figure.axes if a.get_ylabel() in ("before", "after")]
    assert chains == [[192, 32], [192, 16, 32]]


def test_a_replaced_window_shows_what_the_report_knows() -> None:
    spectrum, inputs = (0.6, 0.2, 0.1, 0.06, 0.03, 0.01), (0.7, 0.2, 0.1)
    layer = Channels(
        "Conv 'c'", "c", 1, Chain((3, 6), ("3x3",)), Chain((3, 2, 4, 6), ("1x1", "3x3", "1x1")),
        rank_in=2, rank_out=4, spectrum=spectrum, spectrum_in=inputs,
    )  # fmt: skip
    figure = draw_channels(layer, "c")
    assert not any(a.get_images() for a in figure.axes)
    assert bars(panel(figure, "energy of the responses")) == list(spectrum)
    found = lines(figure)
    np.testing.assert_allclose(found["outputs"][:, 1], np.cumsum(spectrum))
    np.testing.assert_allclose(found["inputs"][:, 1], np.cumsum(inputs))
    assert found["4 outputs kept"][0, 0] == 4.5
    assert found["2 inputs kept"][0, 0] == 2.5
    after = next(a for a in figure.axes if a.get_ylabel() == "after")
    texts = [t.get_text() for t in after.texts]
    assert texts == ["1x1", "3x3", "1x1", "3", "2", "4", "6"]


def test_directions_that_hold_a_share_of_the_energy() -> None:
    energy = np.array([8.0, 1.0, 0.5, 0.5])
    assert [directions(energy, share) for share in (0.5, 0.8, 0.9, 0.91, 1.0)] == [1, 1, 2, 3, 4]
    assert directions(np.zeros(3), 0.9) == 3


def test_a_matrix_of_zeros_or_of_one_weight_can_be_drawn() -> None:
    for matrix in (np.zeros((4, 8), np.float32), np.ones((1, 1), np.float32)):
        widths = (matrix.shape[1], matrix.shape[0])
        figure = draw_channels(Channels("c", "c", 0, Chain(widths, ("1x1",)), None, matrix), "c")
        assert bars(panel(figure, "singular values")) == list(singular_values(matrix))


@pytest.mark.parametrize("name", ["a.png", "a.svg"])
def test_files_are_valid_and_the_same_each_time(tmp_path: Path, name: str) -> None:
    texts = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        style.save(draw_channels(PLAIN, "a $name_with$ signs"), tmp_path / folder / name)
        texts.append((tmp_path / folder / name).read_bytes())
    assert texts[0] == texts[1]
    if name.endswith(".png"):
        from PIL import Image

        with Image.open(tmp_path / "one" / name) as image:
            assert image.format == "PNG"
            assert image.width > image.height > 400
    else:
        assert ElementTree.fromstring(texts[0]).tag == "{http://www.w3.org/2000/svg}svg"
        assert b"<!-- a $name_with$ signs -->" in texts[0]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PwoptError, match="cannot be written: No such file"):
        style.save(draw_channels(PLAIN, "c"), tmp_path / "missing" / "a.png")
