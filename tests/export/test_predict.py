"""`must-jax predict`: pictures of whatever a folder of photos holds."""

import numpy as np
import pytest
from PIL import Image

from must_jax.cli import main
from must_jax.config import task


@pytest.fixture
def checkpoint(make_checkpoint):
  classes = ("cat", "dog")
  return make_checkpoint(
    {
      "kind": task("classification", labels={}, classes=classes),
      "distance": task("depth", labels={}),
    }
  )


def photo(path, size=(40, 60), seed=0, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
  Image.fromarray(pixels).save(path, **options)


def test_what_cannot_be_read_is_named_and_passed_over(
  checkpoint, tmp_path, capsys
):
  photos = tmp_path / "photos"
  photo(photos / "a.jpg")
  photo(photos / "sub/a.jpg", (30, 20))
  photo(photos / "ext.jpg")
  photo(photos / "ext.png")
  (photos / "empty.jpg").write_bytes(b"")
  (photos / "cut.jpg").write_bytes((photos / "a.jpg").read_bytes()[:300])
  (photos / "._a.jpg").write_bytes(b"\0\5\x16\7Mac OS X")
  (photos / "notes.txt").write_text("none")
  photo(photos / ".cache/b.jpg")
  png = bytearray((photos / "ext.png").read_bytes())
  png[40] ^= 255  # in the first chunk after the header's
  (photos / "bad.png").write_bytes(png)
  Image.new("L", (20000, 10000)).save(photos / "huge.png")
  codes = np.linspace(0, 4095, 1200).astype(np.uint16).reshape(30, 40)
  Image.fromarray(codes).save(photos / "deep.png")  # 12 of 16 bits
  out = tmp_path / "out"
  assert main(["predict", str(checkpoint), str(photos), "--out", str(out)]) == 0
  drawn = sorted(p.relative_to(out).as_posix() for p in out.rglob("*.png"))
  names = ("a", "deep", "ext", "ext.png", "sub/a")
  assert drawn == sorted(f"{n}-{t}.png" for n in names for t in TASKS)
  with Image.open(out / "sub/a-distance.png") as picture:
    assert picture.size == (20, 30)  # its own pixels
  said = capsys.readouterr()
  assert f"{photos / 'sub/a.jpg'} -> {out / 'sub/a-kind.png'}" in said.out
  for name, reason in (
    ("empty.jpg", "cannot be decoded: the file is empty"),
    ("bad.png", "cannot be decoded: broken JPEG or PNG data"),
    ("._a.jpg", "hidden"),
    (".cache", "hidden"),
    ("cut.jpg", "cannot be decoded"),
    ("notes.txt", "no image"),
    ("huge.png", "20000"),
  ):
    (line,) = (x for x in said.err.splitlines() if f"/{name}:" in x)
    assert reason in line
  assert "5 images drawn, 7 files passed over" in said.err
  assert "1 images of 16 bits have at most" in said.err


TASKS = ("distance", "kind")


def test_a_file_that_was_named_must_be_readable(checkpoint, tmp_path, capsys):
  photo(tmp_path / "good.jpg")
  (tmp_path / "bad.jpg").write_bytes(b"no image")
  files = [str(tmp_path / name) for name in ("bad.jpg", "gone.jpg", "good.jpg")]
  out = tmp_path / "out"
  assert main(["predict", str(checkpoint), *files, "--out", str(out)]) == 1
  assert len(list(out.iterdir())) == 2
  assert "there is no file" in capsys.readouterr().err


def test_nothing_to_draw_is_an_error(checkpoint, tmp_path, capsys):
  (tmp_path / "none").mkdir()
  (tmp_path / "none/a.txt").write_text("")
  command = ["predict", str(checkpoint), str(tmp_path / "none"), "--out", "x"]
  assert main(command) == 2
  assert "has no images" in capsys.readouterr().err


def test_equal_names_of_several_folders_stay_apart(checkpoint, tmp_path):
  for i, folder in enumerate(("a", "b", "c")):
    photo(tmp_path / folder / "img.jpg", seed=i)
  folders = [str(tmp_path / name) for name in "abc"]
  out = tmp_path / "out"
  assert main(["predict", str(checkpoint), *folders, "--out", str(out)]) == 0
  assert len({p.read_bytes() for p in out.glob("*-distance.png")}) == 3


def test_pictures_have_a_longest_side(checkpoint, tmp_path):
  photo(tmp_path / "a.jpg", (300, 400))
  command = ["predict", str(checkpoint), str(tmp_path / "a.jpg"), "--max-side"]
  assert main([*command, "200", "--out", str(tmp_path / "out")]) == 0
  with Image.open(tmp_path / "out/a-kind.png") as picture:
    assert picture.size == (200, 150)


def test_codes_of_16_bits_are_told_and_can_be_given(
  checkpoint, tmp_path, capsys
):
  codes = np.arange(40 * 60, dtype=np.uint16).reshape(40, 60)  # of 12 bits
  Image.fromarray(codes).save(tmp_path / "a.png")
  command = ["predict", str(checkpoint), str(tmp_path / "a.png"), "--out"]
  assert main([*command, str(tmp_path / "dark")]) == 0
  assert "1 up to 4095. Give --code-range LOW HIGH" in capsys.readouterr().err
  told = [*command, str(tmp_path / "out"), "--code-range"]
  assert main([*told, "0", "4095"]) == 0
  assert "warning" not in capsys.readouterr().err
  dark, out = (
    np.asarray(Image.open(tmp_path / name / "a-kind.png"), float)
    for name in ("dark", "out")
  )
  assert dark.mean() + 20 < out.mean()  # bars of the classes apart
  assert main([*told, "4095", "0"]) == 2
  assert "--code-range is 4095 0" in capsys.readouterr().err
