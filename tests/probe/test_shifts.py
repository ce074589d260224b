"""Shifts: each does what its name says, in any batch split; what is no image is refused at once."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from geomonitor import InputError
from geomonitor.probe.shifts import BLUR, BUILT_IN, NOISE, ROTATION, named_shifts, shifted


def images(count: int = 6, size: int = 24) -> Tensor:
    stream = torch.Generator().manual_seed(0)
    return 3 + 2 * torch.randn(count, 2, size, size, generator=stream)


def under(name: str, inputs: Tensor) -> Tensor:
    return shifted(name, None, inputs, torch.arange(len(inputs)))


@pytest.mark.parametrize("name", BUILT_IN)
def test_any_batch_split_gives_the_same_and_the_input_stays(name):
    x = images()
    before = x.clone()
    whole = under(name, x)
    parts = [shifted(name, None, x[i], i) for i in torch.arange(6).split(4)]
    assert torch.equal(x, before)
    assert whole.shape == x.shape
    torch.testing.assert_close(torch.cat(parts), whole)
    assert not torch.allclose(whole, x, atol=0.1)


@pytest.mark.parametrize("name", BUILT_IN)
def test_normalisation_of_the_images_does_not_matter(name):
    x = images()
    torch.testing.assert_close(under(name, 10 * x - 4), 10 * under(name, x) - 4, rtol=1e-4, atol=1e-3)


def test_noise_has_its_size_and_differs_between_samples():
    x = images()
    noise = under("noise", x) - x
    assert (noise.std() / x.std()).item() == pytest.approx(NOISE, rel=0.05)  # 6,912 draws
    assert not torch.allclose(noise[0], noise[1])


def test_brightness_and_contrast_by_moments():
    x = images()
    bright, flat = under("brightness", x), under("contrast", x)
    torch.testing.assert_close(bright.std(dim=(1, 2, 3)), x.std(dim=(1, 2, 3)))
    assert (bright > x).all()
    torch.testing.assert_close(flat.mean(dim=(1, 2, 3)), x.mean(dim=(1, 2, 3)))
    torch.testing.assert_close(flat.std(dim=(1, 2, 3)), 0.5 * x.std(dim=(1, 2, 3)))


def test_blur_against_scipy():
    filters = pytest.importorskip("scipy.ndimage")
    x = images(1, size=64).double()
    expected = filters.gaussian_filter(x[0, 0].numpy(), 64 * BLUR, mode="nearest", truncate=2)
    assert under("blur", x)[0, 0].numpy() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("size", [(40, 40), (40, 60)])
def test_rotation_turns_a_point_by_its_angle(size):
    height, width = size
    x = torch.zeros(1, 1, height, width)
    x[0, 0, height // 2 - 1 : height // 2 + 1, width // 2 + 10 : width // 2 + 12] = 1  # 11 right of the centre
    turned = under("rotation", x)[0, 0]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    down = ((rows - (height - 1) / 2) * turned).sum() / turned.sum()
    right = ((columns - (width - 1) / 2) * turned).sum() / turned.sum()
    assert math.hypot(down, right) == pytest.approx(11, abs=0.05)
    assert abs(math.degrees(math.atan2(down, right))) == pytest.approx(ROTATION, abs=1)


def test_images_are_found_among_other_inputs():
    x, ids = images(), torch.arange(6)
    expected = under("contrast", x)
    as_dict = shifted("contrast", None, {"id": ids, "pixel_values": x}, ids)
    assert torch.equal(as_dict["pixel_values"], expected)
    assert as_dict["id"] is ids
    assert torch.equal(shifted("contrast", None, [ids, x], ids)[1], expected)
    assert torch.equal(shifted("mine", lambda inputs: -inputs, x, ids), -x)


@pytest.mark.parametrize(
    "inputs", [torch.zeros(2, 5), {"input_ids": torch.zeros(2, 5)}, torch.zeros(2, 1, 4, 4).long(), 3]
)
def test_what_is_no_image_is_named(inputs):
    with pytest.raises(InputError, match=r"float images \(B, C, H, W\).*; got"):
        shifted("blur", None, inputs, torch.arange(2))


def test_names():
    assert named_shifts("noise") == {"noise": None}
    with pytest.raises(InputError, match=r"built-in shifts are noise, .*\['fog'\]"):
        named_shifts(["noise", "fog"])
