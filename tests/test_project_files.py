"""What people and tools look for beside the code."""

import hashlib
import importlib.metadata
import pathlib
import re

import yaml

import must_jax

ROOT = pathlib.Path(__file__).parent.parent


def test_licence_is_the_published_text():
  digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
  # Of https://www.apache.org/licenses/LICENSE-2.0.txt.
  assert digest == (
    "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
  )


def test_citation_names_this_version_and_the_paper():
  citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
  assert citation["cff-version"] == "1.2.0"
  assert citation["version"] == must_jax.__version__
  assert {*citation} >= {"message", "title", "authors"}  # what CFF requires
  paper = citation["preferred-citation"]
  assert [author["family-names"] for author in paper["authors"]] == [
    "Ghiasi",
    "Zoph",
    "Cubuk",
    "Le",
    "Lin",
  ]
  assert paper["title"] in " ".join((ROOT / "README.md").read_text().split())


def test_links_of_pages_lead_somewhere():
  pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
  assert len(pages) > 10
  for page in pages:
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
      if not link.startswith("reference/"):  # which `make docs` makes
        assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_install_page_names_every_extra():
  page = (ROOT / "docs" / "install.md").read_text()
  extras = importlib.metadata.metadata("must_jax").get_all("Provides-Extra")
  assert extras
  for extra in extras:
    assert f"`{extra}`" in page, extra
