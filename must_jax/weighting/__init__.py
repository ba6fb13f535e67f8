"""How the losses of the tasks combine into one. A method is a line here."""

import dataclasses
from collections.abc import Mapping

from must_jax.weighting.balancer import Balancer, Trunk
from must_jax.weighting.graddrop import GradDrop
from must_jax.weighting.gradnorm import GradNorm
from must_jax.weighting.paper import paper_weights
from must_jax.weighting.pcgrad import PCGrad
from must_jax.weighting.uncertainty import Uncertainty

__all__ = ["METHODS", "Balancer", "Trunk", "make_balancer", "paper_weights"]

METHODS: dict[str, type[Balancer]] = {
  "fixed": Balancer,
  "paper": Balancer,  # fixed, and given by the paper's rule (3.2)
  "uncertainty": Uncertainty,
  "gradnorm": GradNorm,
  "pcgrad": PCGrad,
  "graddrop": GradDrop,
}


def make_balancer(
  method: str, weights: Mapping[str, float], **options: float
) -> Balancer:
  """Makes what balances the tasks.

  Args:
    method: key of `METHODS`.
    weights: by task; where learned weights start.
    **options: of all methods; this one takes those that it has.

  Raises:
    ValueError: no such method, or it can't take these values.
  """
  if method not in METHODS:
    raise ValueError(
      f"Method of weighting is {method!r}; expected one of {sorted(METHODS)}."
    )
  names = {field.name for field in dataclasses.fields(METHODS[method])}
  return METHODS[method](
    weights, **{k: v for k, v in options.items() if k in names}
  )
