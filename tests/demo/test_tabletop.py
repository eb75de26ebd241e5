"""The renderer's cameras: what is projected and what is looked up along a ray are the same pinhole."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.demo.tabletop import DEMO_HEIGHT_PX, DEMO_WIDTH_PX, EXTERIOR_CAMERAS, SUPERSAMPLING


@pytest.mark.parametrize("key", EXTERIOR_CAMERAS)
@pytest.mark.parametrize("depth_m", [0.2, 1.7])
def test_what_a_pixel_looks_at_is_projected_onto_that_pixel(key, depth_m):
    camera = EXTERIOR_CAMERAS[key]
    rays = camera.rays()
    assert rays.shape == (DEMO_HEIGHT_PX, DEMO_WIDTH_PX, 3)
    pixels, found_m = camera.project((camera.pose44[:3, 3] + depth_m * rays).reshape(-1, 3))
    right, down = np.meshgrid(np.arange(DEMO_WIDTH_PX) + 0.5, np.arange(DEMO_HEIGHT_PX) + 0.5)
    expected = SUPERSAMPLING * np.stack([right, down], axis=-1).reshape(-1, 2)
    np.testing.assert_allclose(pixels, expected, atol=1e-6)
    np.testing.assert_allclose(found_m, depth_m)
