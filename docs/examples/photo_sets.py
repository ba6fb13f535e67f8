r"""Two public sets of photographs as files that `must-jax import` reads.

  python docs/examples/photo_sets.py fashion \
    photos/clothing-co-parsing photos/fashion
  python docs/examples/photo_sets.py office \
    photos/deep-video-mvs/sample-data/hololens-dataset/000 photos/office

docs/photographs.md says where the sets come from, and imports the files.
"""

import argparse
import io

import numpy as np
from PIL import Image
from scipy.io import loadmat

from must_jax.storage.path import Path

# Names of clothing-co-parsing by what they are here; all others are accessory.
GROUPS = {
  "background": "null",
  "skin": "skin",
  "hair": "hair",
  "upper": "blazer blouse bodysuit bra cape cardigan coat hoodie intimate"
  " jacket jumper shirt sweater sweatshirt t-shirt top vest",
  "lower": "jeans leggings panties pants shorts skirt stockings tights",
  "onepiece": "dress romper suit swimwear",
  "shoes": "boots clogs flats heels loafers pumps sandals shoes sneakers socks"
  " wedges",
  "accessory": "",
}
RADIUS = 4  # pixels to either side that a plane is fitted to
TOLERANCE = 0.05  # part of its depth by which a neighbour may differ
MIN_NEIGHBOURS = 20  # of 81; no line has so many


def fashion(source, out):
  """Masks of eight classes from MATLAB's files of 59.

  The 1,004 photographs that have them, by name: 804 train, 100 val, 100 test.

  Args:
    source: checkout of clothing-co-parsing.
    out: gets classes.txt, and SPLIT/*.jpg with SPLIT_masks/*.png.
  """
  groups = [*GROUPS]
  ids = {n: i for i, g in enumerate(groups) for n in GROUPS[g].split()}
  listed = read_mat(source / "label_list.mat")["label_list"].ravel()
  table = [ids.get(str(name[0]), groups.index("accessory")) for name in listed]
  masks = sorted((source / "annotations" / "pixel-level").glob("*.mat"))
  for i, path in enumerate(masks):
    split = "train" if i < 804 else "val" if i < 904 else "test"
    photo = f"{path.stem}.jpg"
    write(out / split / photo, (source / "photos" / photo).read_bytes())
    mask = np.array(table, np.uint8)[read_mat(path)["groundtruth"]]
    write(out / f"{split}_masks" / f"{path.stem}.png", png(mask))
  write(out / "classes.txt", "".join(f"{g}\n" for g in groups).encode())


def office(source, out):
  """Every fourth frame at half its size, and normals from its depth.

  By time: 74 frames are train, 19 test, with one between them left out.

  Args:
    source: folder of images/, depth/ and K.txt, the camera's matrix.
    out: gets SPLIT/{rgb,depth,normals}/*.png.
  """
  with (source / "K.txt").open() as file:
    camera = np.loadtxt(file) / 2
  frames = sorted((source / "depth").glob("*.png"))[::4]
  for split, paths in (("train", frames[:74]), ("test", frames[75:])):
    for path in paths:
      image = read_image(source / "images" / path.name)
      half = image.resize((image.width // 2, image.height // 2), Image.BOX)
      depth = np.asarray(read_image(path))[::2, ::2]
      vectors, valid = normals(depth / 1000, camera)
      codes = np.rint((vectors + 1) / 2 * 255)
      codes = np.where(valid[..., None], codes, 0).astype(np.uint8)
      for kind, pixels in (("rgb", half), ("depth", depth), ("normals", codes)):
        write(out / split / kind / path.name, png(pixels))


def normals(depth, camera):
  """Surface normals: x right, y down, z forward, towards the camera.

  A plane n P = d, seen at P = z r along the ray r = ((x - cx) / fx,
  (y - cy) / fy, 1), has 1 / z = (n / d) r, which is linear in n / d. So that is
  found by least squares over the pixels nearby whose depth is about the same.

  Args:
    depth: float [h, w] of z in metres, 0 where it is unknown.
    camera: [3, 3], with fx, fy, cx, cy in pixels.

  Returns:
    Unit vectors float64 [h, w, 3], and where there are any, bool [h, w].
  """
  height, width = depth.shape
  y, x = np.mgrid[:height, :width]
  rays = np.stack(
    [
      (x - camera[0, 2]) / camera[0, 0],
      (y - camera[1, 2]) / camera[1, 1],
      np.ones(depth.shape),
    ],
    -1,
  )
  margin = ((RADIUS, RADIUS), (RADIUS, RADIUS))
  wide, wide_rays = np.pad(depth, margin), np.pad(rays, (*margin, (0, 0)))
  products, targets = np.zeros((*depth.shape, 3, 3)), np.zeros(rays.shape)
  count = np.zeros(depth.shape, int)
  for i in range(2 * RADIUS + 1):
    for j in range(2 * RADIUS + 1):
      part = slice(i, i + height), slice(j, j + width)
      z, ray = wide[part], wide_rays[part]
      near = (z > 0) & (np.abs(z - depth) < TOLERANCE * depth)
      ray = np.where(near[..., None], ray, 0)
      products += ray[..., :, None] * ray[..., None, :]
      targets += ray / np.where(near, z, 1)[..., None]
      count += near
  valid = count >= MIN_NEIGHBOURS
  vectors = np.zeros(rays.shape)
  found = np.linalg.solve(products[valid], targets[valid][..., None])[..., 0]
  vectors[valid] = -found / np.linalg.norm(found, axis=-1, keepdims=True)
  return vectors, valid


def read_mat(path):
  """The variables of a file of MATLAB's."""
  return loadmat(io.BytesIO(path.read_bytes()))


def read_image(path):
  """An image with its pixels."""
  return Image.open(io.BytesIO(path.read_bytes()))


def png(pixels):
  """The bytes of a PNG of an image, or of codes of 8 or 16 bits."""
  if not isinstance(pixels, Image.Image):
    pixels = Image.fromarray(np.ascontiguousarray(pixels))
  file = io.BytesIO()
  pixels.save(file, "PNG")
  return file.getvalue()


def write(path, data):
  """Writes a file, and the folders that it is in."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)


if __name__ == "__main__":
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("set", choices=("fashion", "office"))
  parser.add_argument("source", type=Path)
  parser.add_argument("out", type=Path)
  args = parser.parse_args()
  {"fashion": fashion, "office": office}[args.set](args.source, args.out)
