"""Optimizers and learning-rate schedules, from optax."""

from collections.abc import Mapping, Sequence

import jax
import optax

from must_jax.types import PyTree

_POLYNOMIAL_POWER = 0.9  # tfm, of segmentation
_LARS_TRUST = 1e-3  # SimCLR
_RMSPROP_DECAY = 0.9  # EfficientNet
_RMSPROP_EPSILON = 1e-3  # EfficientNet


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
  """Linear warm-up, then a cosine or polynomial to zero, or steps down.

  Args:
    lr: the peak.
    steps: of the whole run, warm-up included.
    schedule: "cosine", "polynomial" (of power 0.9) or "steps". The first two
      count from the end of the warm-up.
    warmup_steps: length of the warm-up.
    warmup_lr: where the warm-up begins.
    boundaries: for "steps": fractions of `steps` at which to decay.
    decay: factor at each boundary.

  Raises:
    ValueError: there is no such schedule.
  """
  main_steps = max(1, steps - warmup_steps)
  if schedule == "cosine":
    main = optax.cosine_decay_schedule(lr, main_steps)
  elif schedule == "polynomial":
    main = optax.polynomial_schedule(lr, 0.0, _POLYNOMIAL_POWER, main_steps)
  elif schedule == "steps":
    # join_schedules counts the main part from the end of the warm-up.
    main = optax.piecewise_constant_schedule(
      lr, {round(b * steps) - warmup_steps: decay for b in boundaries}
    )
  else:
    raise ValueError(
      f"schedule is {schedule!r}; expected 'cosine', 'polynomial' or 'steps'."
    )
  if not warmup_steps:
    return main
  warmup = optax.linear_schedule(warmup_lr, lr, warmup_steps)
  return optax.join_schedules([warmup, main], [warmup_steps])


def kernels(params: PyTree) -> PyTree:
  """True for kernels: biases and norms take no weight decay."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key == "kernel", params
  )


def lr_factors(
  params: PyTree,
  parts: Mapping[str, float],
  layer_decay: float,
  layers: Sequence[Sequence[str]],
) -> PyTree:
  """Factor of the learning rate for every parameter of a `MustModel`.

  Args:
    params: {"backbone": ..., "fpn": ..., "head_NAME": ...}.
    parts: factors of "backbone", "fpn" and "heads".
    layer_decay: from each layer of the backbone to the one before it; the last
      layer has the backbone's own factor.
    layers: names of the backbone's modules, from the layer after the stem to
      the last one; what is named nowhere is the stem.
  """
  depth = {
    name: len(layers) - 1 - i
    for i, names in enumerate(layers)
    for name in names
  }

  def factor(path: tuple, _: jax.Array) -> float:
    part, name = path[0].key, path[1].key
    if part == "backbone":
      return parts["backbone"] * layer_decay ** depth.get(name, len(layers))
    return parts["heads" if part.startswith("head_") else part]

  return jax.tree_util.tree_map_with_path(factor, params)


def make_optimizer(
  schedule: optax.Schedule,
  *,
  name: str = "sgd",
  momentum: float = 0.9,
  nesterov: bool = False,
  betas: tuple[float, float] = (0.9, 0.999),
  weight_decay: float = 0.0,
  clip_norm: float = 0.0,
  parts: Mapping[str, float] | None = None,
  layer_decay: float = 1.0,
  layers: Sequence[Sequence[str]] = (),
) -> optax.GradientTransformation:
  """An optimizer with weight decay on kernels and clipping by global norm.

  The decay is coupled, as in the predecessors' code: it is part of the gradient
  that is clipped and accumulated (RECIPE 2). Only that of "adamw" is not.

  Args:
    schedule: step -> learning rate.
    name: "sgd"; "adamw"; "lars", as SimCLR's code has it, which adapts the rate
      of each kernel (RECIPE 5b); or "rmsprop", as TensorFlow 1 has it, with
      EfficientNet's constants (RECIPE 6).
    momentum: decay of the velocity; not of "adamw". The velocity of "lars" and
      "rmsprop" has the learning rate in it, that of "sgd" does not.
    nesterov: look ahead; of "sgd" and "lars".
    betas: decay of the first and second moment, of "adamw".
    weight_decay: of kernels.
    clip_norm: largest global norm of the gradient; 0 for any.
    parts: see `lr_factors`; all 1 by default.
    layer_decay: see `lr_factors`.
    layers: see `lr_factors`.

  Raises:
    ValueError: no optimizer has this name.
  """
  chain = []
  if weight_decay and name != "adamw":
    chain.append(optax.add_decayed_weights(weight_decay, mask=kernels))
  if clip_norm:
    chain.append(optax.clip_by_global_norm(clip_norm))
  match name:
    case "sgd":
      optimizer = optax.sgd(schedule, momentum, nesterov)
    case "adamw":
      optimizer = optax.adamw(
        schedule, *betas, weight_decay=weight_decay, mask=kernels
      )
    case "lars":
      optimizer = optax.lars(
        schedule,
        trust_coefficient=_LARS_TRUST,
        trust_ratio_mask=kernels,
        momentum=momentum,
        nesterov=nesterov,
      )
    case "rmsprop":
      optimizer = optax.rmsprop(
        schedule,
        decay=_RMSPROP_DECAY,
        eps=_RMSPROP_EPSILON,
        initial_scale=1.0,
        momentum=momentum,
      )
    case _:
      raise ValueError(
        f"Optimizer is {name!r}; expected 'sgd', 'adamw', 'lars' or 'rmsprop'."
      )
  chain.append(optimizer)
  if layer_decay != 1 or any(factor != 1 for factor in (parts or {}).values()):
    factors = {"backbone": 1.0, "fpn": 1.0, "heads": 1.0} | dict(parts or {})
    chain.append(
      optax.stateless(
        lambda updates, _: jax.tree.map(
          lambda update, factor: factor * update,
          updates,
          lr_factors(updates, factors, layer_decay, layers),
        )
      )
    )
  return optax.chain(*chain)
