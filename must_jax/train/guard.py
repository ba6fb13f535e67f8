"""Which steps count: bad ones are left out on the device, without a look back.

A step whose loss or gradient is not finite, or far above those before it, would
spoil the parameters for good. It is recognised inside the compiled step, which
then changes nothing but counters (after OLMo's SkipStepOptimizer).
"""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp

from must_jax.types import Array


class TrainingDiverged(RuntimeError):
  """Step after step has a loss or gradient that cannot be learned from."""


@dataclasses.dataclass(frozen=True)
class Streak:
  """Consecutive skipped steps.

  Attributes:
    step: the last of them that is known.
    length: their number up to this one.
    keys: of the examples in its batch.
    metrics: what it said.
  """

  step: int
  length: int
  keys: Any
  metrics: dict[str, float]

  @property
  def first(self) -> int:
    """The first of the steps."""
    return self.step - self.length + 1

  def describe(self) -> str:
    """Names the last step, its losses and the examples in its batch."""
    losses = ", ".join(
      f"{name} {value:.4g}"
      for name, value in self.metrics.items()
      if name.endswith("/loss")
    )
    shown = b", ".join(self.keys[:4]).decode(errors="replace")
    return (
      f"step {self.step}: loss {self.metrics['loss']:.4g}, gradient norm"
      f" {self.metrics['grad_norm']:.4g}; {losses}; the batch begins with the"
      f" keys {shown}."
    )


class GuardState(NamedTuple):
  """What is remembered of the steps so far.

  Attributes:
    losses: float32 [window], of the latest steps that counted.
    norms: float32 [window], of their gradients.
    counted: steps that counted.
    skipped: steps that were left out.
    in_a_row: of them, those since the last that counted.
  """

  losses: Array
  norms: Array
  counted: Array
  skipped: Array
  in_a_row: Array


@dataclasses.dataclass(frozen=True)
class Guard:
  """The rule.

  Attributes:
    spike_sigmas: a loss or gradient norm that is so many standard deviations
      above the mean of the window is a spike; 0: only what is not finite is
      bad. OLMo: 6.
    window: steps to compare with (OLMo: 128); until it is full nothing is a
      spike.
  """

  spike_sigmas: float = 0.0
  window: int = 128

  def init(self) -> GuardState:
    """Nothing seen yet."""
    zeros = jnp.zeros(self.window, jnp.float32)
    none = jnp.zeros((), jnp.int32)
    return GuardState(zeros, zeros, none, none, none)

  def judge(self, state: GuardState, loss: Array, norm: Array) -> Array:
    """Whether a step counts: bool []."""
    good = jnp.isfinite(loss) & jnp.isfinite(norm)
    if not self.spike_sigmas:
      return good
    full = state.counted >= self.window
    for value, past in ((loss, state.losses), (norm, state.norms)):
      limit = jnp.mean(past) + self.spike_sigmas * jnp.std(past)
      good &= ~(full & (value > limit))
    return good

  def update(
    self, state: GuardState, good: Array, loss: Array, norm: Array
  ) -> GuardState:
    """The state after a step that was judged.

    Args:
      state: before it.
      good: bool scalar, whether it counts.
      loss: float32 scalar.
      norm: float32 scalar, of its gradient.
    """

    def remember(past: Array, value: Array) -> Array:
      here = jnp.arange(self.window) == state.counted % self.window
      return jnp.where(good & here, value, past)

    one = good.astype(jnp.int32)
    return GuardState(
      losses=remember(state.losses, loss),
      norms=remember(state.norms, norm),
      counted=state.counted + one,
      skipped=state.skipped + 1 - one,
      in_a_row=jnp.where(good, 0, state.in_a_row + 1),
    )
