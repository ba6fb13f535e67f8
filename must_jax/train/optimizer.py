"""Optimizers and learning-rate schedules, from optax."""

import jax
import optax

from must_jax.types import PyTree


def make_schedule(
  lr: float,
  steps: int,
  *,
  schedule: str,
  warmup_steps: int = 0,
  warmup_lr: float = 0.0,
  boundaries: tuple[float, ...] = (),
  decay: float = 0.1,
) -> optax.Schedule:
  """Linear warm-up, then a cosine to zero or steps down (RECIPE 2).

  Args:
    lr: the peak.
    steps: of the whole run, warm-up included.
    schedule: "cosine" or "steps".
    warmup_steps: length of the warm-up.
    warmup_lr: where the warm-up begins.
    boundaries: for "steps": fractions of `steps` at which to decay.
    decay: factor at each boundary.
  """
  if schedule == "cosine":
    main = optax.cosine_decay_schedule(lr, max(1, steps - warmup_steps))
  elif schedule == "steps":
    # join_schedules counts the main part from the end of the warm-up.
    main = optax.piecewise_constant_schedule(
      lr, {round(b * steps) - warmup_steps: decay for b in boundaries}
    )
  else:
    raise ValueError(f"schedule is {schedule!r}; expected 'cosine' or 'steps'.")
  if not warmup_steps:
    return main
  warmup = optax.linear_schedule(warmup_lr, lr, warmup_steps)
  return optax.join_schedules([warmup, main], [warmup_steps])


def kernels(params: PyTree) -> PyTree:
  """True for kernels: biases and norms take no weight decay."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key == "kernel", params
  )


def make_optimizer(
  schedule: optax.Schedule,
  *,
  momentum: float = 0.9,
  nesterov: bool = False,
  weight_decay: float = 0.0,
  clip_norm: float = 0.0,
) -> optax.GradientTransformation:
  """SGD with momentum, L2 on kernels and clipping by global norm.

  The decay is coupled, as in the predecessors' code: it is part of the
  gradient that is clipped and accumulated (RECIPE 2).
  """
  parts = []
  if weight_decay:
    parts.append(optax.add_decayed_weights(weight_decay, mask=kernels))
  if clip_norm:
    parts.append(optax.clip_by_global_norm(clip_norm))
  parts.append(optax.sgd(schedule, momentum=momentum, nesterov=nesterov))
  return optax.chain(*parts)
