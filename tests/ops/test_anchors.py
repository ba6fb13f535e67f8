import numpy as np
import pytest

from must_jax.ops import anchors as ops


@pytest.mark.parametrize(
  ("height", "width", "levels", "expected"),
  [
    (64, 128, (3, 4), ((8, 16), (4, 8))),
    (65, 63, (3, 4, 5), ((9, 8), (5, 4), (3, 2))),
    (100, 1, (2, 7), ((25, 1), (1, 1))),
  ],
)
def test_level_sizes(height, width, levels, expected):
  assert ops.level_sizes(height, width, levels) == expected


def test_known_anchors():
  anchors = ops.generate(8, 16, (3,), scale=2.0, aspect_ratios=(0.25, 1, 4))
  # 16 pixels: 32 x 8, 16 x 16 and 8 x 32 (height x width) at (4, 4), (4, 12).
  expected = [
    [-12, 0, 20, 8],
    [-4, -4, 12, 12],
    [0, -12, 8, 20],
    [-12, 8, 20, 16],
    [-4, 4, 12, 20],
    [0, -4, 8, 28],
  ]
  assert list(anchors) == [3]
  assert anchors[3].dtype == np.float32
  np.testing.assert_array_equal(anchors[3], expected)


def test_anchors_match_naive_loops():
  height, width, scale, ratios = 50, 37, 3.0, (0.5, 1.0, 2.0)
  anchors = ops.generate(height, width, (2, 3, 5), scale, ratios)
  for level, boxes in anchors.items():
    stride = 2**level
    expected = []
    for i in range(-(-height // stride)):
      for j in range(-(-width // stride)):
        for ratio in ratios:
          y, x = stride / 2 + i * stride, stride / 2 + j * stride
          h = scale * stride / ratio**0.5
          w = scale * stride * ratio**0.5
          expected.append([y - h / 2, x - w / 2, y + h / 2, x + w / 2])
    np.testing.assert_allclose(boxes, expected, rtol=1e-6, atol=1e-5)


def test_torchvision_anchors():
  # The first two and the last cell of torchvision 0.29's AnchorGenerator
  # (sizes 32 and 512) for an image of 64 x 96: levels of 16 x 24 and 1 x 2
  # cells, the latter 96 // 2 = 48 pixels apart.
  anchors = ops.generate(
    64, 96, (2, 6), 8.0, (2.0, 1.0, 0.5), half_pixel=False, round_corners=True
  )
  first = [[-11, -23, 11, 23], [-16, -16, 16, 16], [-23, -11, 23, 11]]
  second = [[-11, -19, 11, 27], [-16, -12, 16, 20], [-23, -7, 23, 15]]
  last = [[49, 69, 71, 115], [44, 76, 76, 108], [37, 81, 83, 103]]
  assert anchors[2].shape == (16 * 24 * 3, 4)
  np.testing.assert_array_equal(anchors[2][:6], first + second)
  np.testing.assert_array_equal(anchors[2][-3:], last)
  coarse = np.array(
    [[-181, -362, 181, 362], [-256, -256, 256, 256], [-362, -181, 362, 181]]
  )
  np.testing.assert_array_equal(
    anchors[6], np.concatenate([coarse, coarse + [0, 48, 0, 48]])
  )
