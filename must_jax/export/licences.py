"""What licences allow, as far as their names say it.

Not legal advice: a text is read as a licence only if it is one's name and
nothing else. Whatever says more ("MIT; trained on ImageNet") is unknown here,
and left to people.
"""

import re
from typing import NamedTuple

PERMISSIVE = "permissive"
SHARE_ALIKE = "share alike"
RESTRICTED = "use restrictions"
NO_DERIVATIVES = "no derivatives"
UNKNOWN = "unknown"
NON_COMMERCIAL = "non-commercial"
# From the freest to those that a product must not meet unnoticed.
KINDS = (
  PERMISSIVE,
  SHARE_ALIKE,
  RESTRICTED,
  NO_DERIVATIVES,
  UNKNOWN,
  NON_COMMERCIAL,
)


class Licence(NamedTuple):
  """A licence as it was read.

  Attributes:
    kind: out of `KINDS`.
    hub_id: what model hubs call it; "" if they have no name for it.
  """

  kind: str
  hub_id: str = ""


# SPDX identifiers and those of hubs, in lower case; those of Creative Commons
# follow a rule. `name=hub's name` where that differs.
_NAMES = {
  PERMISSIVE: """0bsd afl-3.0 apache-2.0 artistic-2.0 bsd bsd-2-clause
    bsd-3-clause bsd-3-clause-clear bsl-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 ecl-2.0 etalab-2.0 isc mit mit-0 ms-pl ncsa
    odc-by-1.0=odc-by odc-by pddl-1.0=pddl pddl postgresql public-domain
    unlicense wtfpl
    zlib""",
  SHARE_ALIKE: """agpl-3.0 agpl-3.0-only=agpl-3.0 agpl-3.0-or-later=agpl-3.0
    cdla-sharing-1.0 epl-1.0 epl-2.0 eupl-1.1 eupl-1.2 gfdl gpl gpl-2.0
    gpl-2.0-only=gpl-2.0 gpl-2.0-or-later=gpl-2.0 gpl-3.0
    gpl-3.0-only=gpl-3.0 gpl-3.0-or-later=gpl-3.0 lgpl lgpl-2.1
    lgpl-2.1-only=lgpl-2.1 lgpl-2.1-or-later=lgpl-2.1 lgpl-3.0
    lgpl-3.0-only=lgpl-3.0 lgpl-3.0-or-later=lgpl-3.0 mpl-2.0 odbl-1.0=odbl
    odbl osl-3.0""",
  RESTRICTED: """bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m c-uda creativeml-openrail-m gemma llama2 llama3
    openrail openrail++""",
  NON_COMMERCIAL: """apple-amlr deepfloyd-if-license
    fair-noncommercial-research-license intel-research
    polyform-noncommercial-1.0.0""",
}
_TABLE = {
  name: Licence(kind, hub_id or name)
  for kind, names in _NAMES.items()
  for name, _, hub_id in (entry.partition("=") for entry in names.split())
}
# Permissive, but hubs have no name for them.
for _name in ("0bsd", "mit-0", "public-domain"):
  _TABLE[_name] = Licence(PERMISSIVE)
_TABLE["polyform-noncommercial-1.0.0"] = Licence(NON_COMMERCIAL)

# Of Creative Commons hubs name these alone.
_CC_OF_HUBS = """cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0
  cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0
  cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
  cc-by-nc-sa-4.0"""
_CREATIVE_COMMONS = re.compile(
  r"cc-(?P<zero>0|zero)(-1\.0)?"
  r"|cc-by(?P<nc>-nc)?(?:-(?P<more>sa|nd))?(-\d\.\d)?"
)
_CC_URL = re.compile(
  r"https?://creativecommons\.org/(?:licenses|publicdomain)"
  r"/(?P<name>zero|[a-z-]+)/(?P<version>\d\.\d)/?\S*"
)
# Anywhere in a text.
_NOT_FOR_COMMERCE = re.compile(
  r"non[- ]?commercial|\bcc[ -]by[ -]nc\b|\bno(?:t for)? commercial"
  r"|\b(?:research|academic|educational?)\b.{0,20}\bonly\b"
  r"|\bonly\b.{0,20}\b(?:research|academic|educational?)\b"
  r"|\bfor (?:academic|research|educational)\b"
  r"|\b(?:research|academic) (?:use|purposes?)\b",
  re.IGNORECASE,
)
# Words around a name that change nothing.
_REMARKS = re.compile(
  r"\(generated\)|\b(?:the|licen[cs]e|version)\b|\bv(?=\d)|\.$", re.IGNORECASE
)


def read(text: str | None) -> Licence:
  """What a licence's name says.

  Args:
    text: an SPDX identifier or expression, a usual way to write one, or prose.
      With AND what is least free counts, with OR what is most.
  """
  words = " ".join((text or "").split())
  if not words:
    return Licence(UNKNOWN)
  parts = re.split(r"[()]*\s(?:AND|OR)\s[()]*", words.strip("()"))
  if len(parts) > 1:
    # With both operators the least free one counts, whatever binds tighter.
    choose = max if " AND " in words else min
    return Licence(choose((read(part).kind for part in parts), key=KINDS.index))
  if licence := _by_name(words):
    return licence
  return Licence(NON_COMMERCIAL if _NOT_FOR_COMMERCE.search(words) else UNKNOWN)


def _by_name(words: str) -> Licence | None:
  if url := _CC_URL.fullmatch(words):
    kind = "0" if url["name"] == "zero" else url["name"]
    words = f"cc-{kind}-{url['version']}"
  name = re.sub(r"[\s_,]+", "-", _REMARKS.sub(" ", words).strip()).lower()
  name = re.sub(r"^cc0", "cc-0", name)
  if name in _TABLE:
    return _TABLE[name]
  match = _CREATIVE_COMMONS.fullmatch(name)
  if not match:
    return None
  if match["zero"]:
    return Licence(PERMISSIVE, "cc0-1.0")
  hub_id = name if name in _CC_OF_HUBS.split() else ""
  if match["nc"]:
    return Licence(NON_COMMERCIAL, hub_id)
  more = {"sa": SHARE_ALIKE, "nd": NO_DERIVATIVES, None: PERMISSIVE}
  return Licence(more[match["more"]], hub_id)
