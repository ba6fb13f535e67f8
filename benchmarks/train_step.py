"""Where the time of a training step goes, and torchvision's beside it.

  python -m benchmarks.train_step --backbone resnet50 --image-size 640 \
    --batch 8 --rois 512 --dtype bfloat16 --torch PYTHON

Needs jax, flax, optax and numpy. The student has heads for classes, boxes, a
class map and depth, and random labels of all four. The whole step is the one
that training runs. Its pieces are compiled on their own and run on what the
piece before them gave: once forward, and once forward and backward, for the
gradients of their parameters and inputs. So the sum of the pieces lacks what
XLA saves between them, and the adding up of gradients of maps that several
pieces read. All programs take turns; the shortest time of the rounds counts.

FLOPs are those of the program as it is written, as XLA counts them for a CPU:
for a GPU it does not count convolutions. It counts the body of a loop once: of
NMS, and of ROIAlign on TPUs, hardly anything is in them.

PYTHON is an interpreter that has torchvision. With it a detector of
torchvision's layers is measured, too, beside torchvision's own
(`torchvision_step.py`): the same images and boxes, in turns on the same device.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import math
import os
import pathlib
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

# PyTorch needs memory of the same device.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, SingleDeviceSharding

from must_jax.convert import torchvision_detection
from must_jax.fields import Boxes, ClassMap, ClassVector, Field, ValueMap
from must_jax.models.fpn import FPN, fuse
from must_jax.models.must import Features, MustModel, build_backbone
from must_jax.models.rcnn import FasterRCNNHead
from must_jax.tasks import HeadOptions, Task, make_task
from must_jax.tasks.task import sum_of_means
from must_jax.train import mesh as mesh_lib
from must_jax.train.guard import Guard
from must_jax.train.optimizer import make_optimizer
from must_jax.train.state import TrainState, create_state, init_state
from must_jax.train.step import make_train_step
from must_jax.types import PyTree
from must_jax.weighting.balancer import Balancer

# TFLOP/s of one device as its maker has it, dense, bfloat16 (T4: float16).
PEAK_TFLOPS = {
  r"A100": 312,
  r"H[12]00": 989,
  r"L4\b": 121,
  r"T4\b": 65,
  r"TPU v4$": 275,
  r"TPU v5( lite|e)": 197,
  r"TPU v5p?$": 459,
  r"TPU v6( lite|e)": 918,
}
MATMUL_SIDE = 3072  # of the product that stands in for an unknown peak
NUM_CLASSES = {"classification": 1000, "detection": 365, "segmentation": 133}
LABEL_STRIDE = 4  # of maps, in pixels
NUM_OBJECTS = 8  # of an image
LEAST_SECONDS = 0.05  # of a measurement; short programs run more than once
WHOLE = "whole step"


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is measured.

  Attributes:
    backbone: key of `BACKBONES`.
    image_size: side in pixels.
    batch: images.
    rois: rois of an image that the box head trains on; 512 in training.
    dtype: of the activations.
    rounds: how often everything is measured.
  """

  backbone: str = "resnet50"
  image_size: int = 256
  batch: int = 2
  rois: int = 64
  dtype: str = "float32"
  rounds: int = 3


class Program(NamedTuple):
  """Something to time: what runs it, and what counts the FLOPs of a run."""

  call: Callable[[], PyTree]
  flops: Callable[[], float]


class Row(NamedTuple):
  """A line of a profile, for one step.

  Attributes:
    forward: seconds; nan for the whole step.
    both: seconds forward and, if there is a gradient, backward.
    flops: of both.
    torch_forward: seconds of torchvision's, or nan.
    torch_both: likewise.
  """

  forward: float
  both: float
  flops: float
  torch_forward: float
  torch_both: float


def make_student(settings: Settings) -> tuple[MustModel, dict[str, Task]]:
  """The default student of the four kinds of the paper."""
  tasks = {
    "classification": _make_task("classification"),
    "depth": _make_task("depth"),
    "detection": _make_task("detection", num_rois=settings.rois),
    "segmentation": _make_task("segmentation"),
  }
  return _make_model(settings, tasks), tasks


def make_detector(settings: Settings) -> tuple[MustModel, dict[str, Task]]:
  """A detector with the layers of torchvision's "v2"."""
  options = torchvision_detection.OPTIONS
  task = _make_task("detection", num_rois=settings.rois, **options)
  tasks = {"detection": task}
  model = _make_model(
    settings, tasks, min_level=2, max_level=6, norm="convs", top="pool"
  )
  return model, tasks


def _make_task(kind: str, **options: Any) -> Task:
  classes = tuple(map(str, range(NUM_CLASSES.get(kind, 0))))
  return make_task(kind, kind, classes, options)


def _make_model(
  settings: Settings,
  tasks: Mapping[str, Task],
  min_level: int = 3,
  max_level: int = 7,
  **fpn: Any,
) -> MustModel:
  norm_and_type: dict[str, Any] = {
    "dtype": jnp.dtype(settings.dtype),
    "norm_momentum": 0.99,
    "norm_epsilon": 1e-3,
  }
  levels: dict[str, Any] = {
    "channels": 256,
    "min_level": min_level,
    "max_level": max_level,
  }
  options = HeadOptions(**levels, **norm_and_type)
  return MustModel(
    build_backbone(settings.backbone, **norm_and_type),
    FPN(**levels, **norm_and_type, **fpn),
    tuple((name, task.make_head(options)) for name, task in tasks.items()),
  )


def random_batch(settings: Settings, tasks: Mapping[str, Task]) -> PyTree:
  """Noise, with random labels of each task (`must_jax.types`)."""
  rng = np.random.default_rng(0)
  count, side = settings.batch, settings.image_size
  return {
    "image": rng.integers(0, 256, (count, side, side, 3), np.uint8),
    "valid": np.ones(count, bool),
    "labels": {
      name: {
        field: {
          "present": np.ones(count, bool),
          **_random_labels(rng, kind, count, side),
          **(
            {"known": np.ones((count, task.num_classes), bool)}
            if kind.has_background
            else {}
          ),
        }
        for field, kind in task.fields.items()
      }
      for name, task in tasks.items()
    },
  }


def _random_labels(
  rng: np.random.Generator, kind: Field, count: int, side: int
) -> dict[str, np.ndarray]:
  """Arrays of a kind of field, but for `present`."""
  shape = (count, side // LABEL_STRIDE, side // LABEL_STRIDE)
  match kind:
    case ClassVector():
      classes = rng.integers(0, kind.num_classes, count)
      return {"probs": np.eye(kind.num_classes, dtype=np.float32)[classes]}
    case Boxes():
      boxes = np.zeros((count, kind.max_boxes, 4), np.float32)
      corner = rng.uniform(0, 0.6, (count, NUM_OBJECTS, 2))
      opposite = corner + rng.uniform(0.1, 0.4, corner.shape)
      boxes[:, :NUM_OBJECTS] = side * np.concatenate([corner, opposite], -1)
      classes = rng.integers(0, kind.num_classes, boxes.shape[:2], np.int32)
      valid = np.tile(np.arange(kind.max_boxes) < NUM_OBJECTS, (count, 1))
      ignore = np.zeros(boxes.shape[:2], bool)
      return {
        "boxes": boxes,
        "classes": classes,
        "valid": valid,
        "ignore": ignore,
        "scores": valid.astype(np.float32),
      }
    case ClassMap():
      return {"classes": rng.integers(0, kind.num_classes, shape, np.int32)}
    case ValueMap():
      values = rng.uniform(0, 1, shape).astype(np.float32)
      return {"values": values, "valid": np.ones(shape, bool)}
    case _:
      raise ValueError(f"There are no random labels of {kind}; add them here.")


def make_step(
  model: MustModel, tasks: dict[str, Task], settings: Settings
) -> tuple[Any, Any, TrainState, optax.GradientTransformation]:
  """The step that training runs, on one device, and what it takes.

  Returns:
    (The step; the same for a CPU, to count its FLOPs; state; optimizer.)
  """
  # At a small rate numbers stay finite, though there is nothing to learn.
  optimizer = make_optimizer(optax.constant_schedule(1e-4), weight_decay=4e-5)
  balancer, guard = Balancer(dict.fromkeys(tasks, 1.0)), Guard()
  size = (settings.image_size, settings.image_size)
  init = functools.partial(init_state, model, optimizer, balancer, guard, size)

  shapes = jax.eval_shape(init, jax.random.key(0))

  def step_on(mesh: Mesh) -> Any:
    return make_train_step(
      model,
      tasks,
      optimizer,
      balancer,
      guard,
      state_sharding=mesh_lib.state_sharding(shapes, mesh),
      mesh=mesh,
      num_images=settings.batch,
    )

  mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
  cpu = mesh_lib.make_mesh(devices=jax.devices("cpu")[:1])
  return step_on(mesh), step_on(cpu), create_state(init, 0, mesh), optimizer


class Chain:
  """Compiles pieces of a step one after another and keeps them.

  Attributes:
    forward: by name.
    both: forward and backward, of pieces that have a gradient.
  """

  def __init__(self, model: MustModel, state: TrainState) -> None:
    self.forward: dict[str, Program] = {}
    self.both: dict[str, Program] = {}
    self._model, self._state = model, state

  def run(
    self,
    name: str,
    function: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    trained: PyTree,
    fixed: PyTree = (),
  ) -> PyTree:
    """Adds a piece.

    Args:
      name: of the piece.
      function: (trained, fixed) -> (outputs, what else it gives).
      trained: parameters and inputs that get a gradient, of the outputs.
      fixed: inputs that get none.

    Returns:
      The outputs.
    """
    self.forward[name] = _compile(function, trained, fixed)
    outputs, _ = self.forward[name].call()
    if jax.tree.leaves(trained):

      def both(trained: PyTree, fixed: PyTree, cotangent: PyTree) -> PyTree:
        outputs, pull, others = jax.vjp(
          lambda trained: function(trained, fixed), trained, has_aux=True
        )
        return outputs, others, pull(cotangent)

      ones = jax.tree.map(jnp.ones_like, outputs)
      self.both[name] = _compile(both, trained, fixed, ones)
    return outputs

  def run_model(
    self,
    name: str,
    method: Callable[..., PyTree],
    *paths: tuple[str, ...],
    inputs: tuple[PyTree, ...] = (),
    fixed: tuple[PyTree, ...] = (),
  ) -> PyTree:
    """Adds a part of the model.

    Args:
      name: of the piece.
      method: (model, *inputs, *fixed) -> outputs.
      *paths: of the modules whose parameters it has.
      inputs: arguments that get a gradient.
      fixed: further arguments.

    Returns:
      The outputs.
    """

    def function(trained: PyTree, fixed: PyTree) -> tuple[PyTree, PyTree]:
      (params, inputs), (stats, key, others) = trained, fixed
      return self._model.apply(
        {"params": params, "batch_stats": stats},
        *inputs,
        *others,
        method=method,
        rngs={"sample": key},
        mutable=["batch_stats"],
      )

    params, stats = (
      {k: v for path in paths for k, v in _only(tree, path).items()}
      for tree in (self._state.params, self._state.batch_stats)
    )
    key = jax.random.key(0)
    return self.run(name, function, (params, inputs), (stats, key, fixed))


def _only(tree: PyTree, path: tuple[str, ...]) -> PyTree:
  """What is at a path, under its names; {} if there is nothing."""
  if not path:
    return tree
  name, *rest = path
  return {name: _only(tree[name], tuple(rest))} if name in tree else {}


def _compile(function: Callable[..., PyTree], *args: PyTree) -> Program:
  jitted = jax.jit(function)
  compiled = jitted.lower(*args).compile()
  return Program(lambda: compiled(*args), lambda: _flops(jitted, *args))


def _flops(jitted: Any, *args: PyTree) -> float:
  """FLOPs of a call, as written; only the shapes of the arguments matter."""
  cpu = SingleDeviceSharding(jax.devices("cpu")[0])
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=cpu), args
  )
  costs: Any = jitted.lower(*shapes).cost_analysis()
  return costs["flops"]


def make_pieces(
  model: MustModel,
  tasks: dict[str, Task],
  state: TrainState,
  optimizer: optax.GradientTransformation,
  batch: PyTree,
) -> Chain:
  """The step, piece by piece, of a model with a detector among its heads."""
  chain = Chain(model, state)
  detector = next(
    name for name, head in model.heads if isinstance(head, FasterRCNNHead)
  )
  others = [name for name in tasks if name != detector]
  size = batch["image"].shape[1:3]
  objects = batch["labels"][detector]["objects"]

  def head(model: MustModel) -> FasterRCNNHead:
    return getattr(model, f"head_{detector}")

  maps, top = chain.run_model(
    "backbone",
    lambda model, image: model.trunk(image, True),
    ("backbone",),
    fixed=(batch["image"],),
  )
  pyramid = chain.run_model(
    "FPN", lambda model, maps: model.fpn(maps, True), ("fpn",), inputs=(maps,)
  )
  logits, deltas = chain.run_model(
    "RPN head",
    lambda model, pyramid: head(model).rpn(pyramid, True),
    (f"head_{detector}", "rpn"),
    inputs=(pyramid,),
  )
  limits = jnp.broadcast_to(jnp.float32(size), (len(logits), 2))
  proposals = chain.run_model(
    "decoding, top k, NMS",
    lambda model, logits, deltas, limits: head(model).proposals(
      logits, deltas, size, limits
    ),
    fixed=(logits, deltas, limits),
  )
  targets, sampled = chain.run_model(
    "matching, sampling",
    lambda model, objects, rois, valid: (
      head(model).anchor_targets(size, objects),
      head(model).sample_rois(rois, valid, objects),
    ),
    fixed=(objects, *proposals),
  )
  pooled = chain.run_model(
    "ROIAlign",
    lambda model, pyramid, rois: head(model).pool(pyramid, rois),
    inputs=(pyramid,),
    fixed=(sampled["rois"],),
  )
  class_logits, box_deltas = chain.run_model(
    "box head",
    lambda model, pooled, valid: head(model).fast_rcnn(pooled, valid, True),
    (f"head_{detector}", "fast_rcnn"),
    inputs=(pooled,),
    fixed=(sampled["valid"],),
  )
  predictions = {
    detector: {
      "rpn_logits": logits,
      "rpn_deltas": deltas,
      "class_logits": class_logits,
      "box_deltas": box_deltas,
    }
  }
  targets |= {
    "rois": sampled["rois"],
    "roi_valid": sampled["valid"],
    "roi_classes": sampled["classes"],
    "roi_positive": sampled["is_positive"],
    "roi_gt_boxes": sampled["gt_boxes"],
    "roi_scores": sampled["scores"],
  }
  if others:
    fused_size = (-(-size[0] // 4), -(-size[1] // 4))
    fused = chain.run(
      "fused P2", lambda pyramid, _: (fuse(pyramid, fused_size), ()), pyramid
    )
    predictions |= chain.run_model(
      "class and pixel heads",
      lambda model, features: {
        name: model.head(name, features, size, train=True) for name in others
      },
      *((f"head_{name}",) for name in others),
      inputs=(Features({}, maps[5] if top is None else top, {}, fused),),
    )

  def losses(predictions: PyTree, fixed: PyTree) -> tuple[PyTree, PyTree]:
    targets, batch = fixed
    outputs = predictions | {detector: predictions[detector] | targets}
    parts = [task.loss(outputs[name], batch) for name, task in tasks.items()]
    return sum(map(sum_of_means, parts)), ()

  chain.run("losses", losses, predictions, (targets, batch))

  def update(_: PyTree, fixed: PyTree) -> tuple[PyTree, PyTree]:
    grads, opt_state, params = fixed
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), ()

  # Parameters stand in for gradients.
  fixed = (state.params, state.opt_state, state.params)
  chain.run("optimizer", update, (), fixed)
  return chain


def measure(
  programs: Mapping[str, Callable[[], PyTree]],
  rounds: int,
  others: Callable[[], dict[str, float]] = dict,
) -> dict[str, list[float]]:
  """Seconds of a call of each program, of each round.

  Args:
    programs: by name.
    rounds: how often all of them are measured, in turns.
    others: gives a measurement of further programs, by name.
  """

  def seconds(program: Callable[[], PyTree], calls: int) -> float:
    # In training a step follows its like: what it needs of memory is there.
    jax.block_until_ready(program())
    start = time.perf_counter()
    for _ in range(calls):
      result = program()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / calls

  calls = {}
  for name, program in programs.items():
    calls[name] = math.ceil(LEAST_SECONDS / seconds(program, 1))
  found = [
    {name: seconds(programs[name], calls[name]) for name in programs} | others()
    for _ in range(rounds)
  ]
  return {name: [x[name] for x in found] for name in found[0]}


def profile(
  model: MustModel,
  tasks: dict[str, Task],
  settings: Settings,
  torchvision: Callable[[], dict[str, float]] = dict,
) -> tuple[dict[str, Row], float]:
  """Measures a model's step and its pieces.

  Args:
    model: with a detector among its heads.
    tasks: its tasks.
    settings: what to measure.
    torchvision: see `run_torchvision`.

  Returns:
    The row of `WHOLE`, then those of the pieces; and the longest whole step, in
    seconds.
  """
  batch = jax.device_put(random_batch(settings, tasks), jax.devices()[0])
  step, cpu_step, state, optimizer = make_step(model, tasks, settings)
  chain = make_pieces(model, tasks, state, optimizer, batch)
  key = jax.random.key_data(jax.random.key(0))
  compiled = step.lower(state, batch, key).compile()
  # The step takes the buffers of its state, which the pieces read.
  current = jax.tree.map(jnp.copy, state)

  def whole() -> PyTree:
    nonlocal current
    current, metrics = compiled(current, batch, key)
    return metrics

  forward = chain.forward
  flops = functools.partial(_flops, cpu_step, state, batch, key)
  both = {WHOLE: Program(whole, flops), **forward, **chain.both}
  found = measure(
    {f"{name}, forward": forward[name].call for name in chain.both}
    | {name: program.call for name, program in both.items()},
    settings.rounds,
    torchvision,
  )
  least = {name: min(seconds) for name, seconds in found.items()}

  def seconds(name: str, prefix: str = "") -> tuple[float, float]:
    """Forward; forward and backward."""
    total = least.get(prefix + name, math.nan)
    only = math.nan if name == WHOLE else total
    return least.get(f"{prefix}{name}, forward", only), total

  rows = {
    name: Row(*seconds(name), program.flops(), *seconds(name, "torchvision "))
    for name, program in both.items()
  }
  return rows, max(found[WHOLE])


@contextlib.contextmanager
def run_torchvision(
  python: str, settings: Settings
) -> Iterator[Callable[[], dict[str, float]]]:
  """Starts `torchvision_step.py`, which measures whenever it is asked.

  Args:
    python: interpreter.
    settings: what to measure.

  Raises:
    ValueError: it cannot measure.
  """
  batch = random_batch(settings, make_detector(settings)[1])
  objects = batch["labels"]["detection"]["objects"]
  script = pathlib.Path(__file__).with_name("torchvision_step.py")
  with tempfile.TemporaryDirectory() as name:
    file = os.path.join(name, "batch.npz")
    np.savez(
      file,
      image=batch["image"],
      boxes=objects["boxes"][:, :NUM_OBJECTS],
      classes=objects["classes"][:, :NUM_OBJECTS],
    )
    process = subprocess.Popen(
      [python, script, file, json.dumps(dataclasses.asdict(settings))],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      bufsize=1,
    )
    questions, answers = process.stdin, process.stdout
    assert questions and answers

    def ask() -> dict[str, float]:
      try:
        questions.write("\n")
        line = answers.readline()
      except BrokenPipeError:
        line = ""
      if not line:
        raise ValueError(
          f"{python} cannot measure torchvision's step; expected an"
          " interpreter with torch and torchvision (its messages are above)."
        )
      return {f"torchvision {k}": v for k, v in json.loads(line).items()}

    try:
      ask()  # what fails, fails now
      yield ask
    finally:
      process.kill()
      process.wait()


def known_peak(device_kind: str) -> float | None:
  """TFLOP/s of a device, by the name that JAX has for it; None if not known."""
  return next(
    (x for name, x in PEAK_TFLOPS.items() if re.search(name, device_kind)), None
  )


def peak_flops(dtype: str) -> tuple[float, str]:
  """FLOP/s that the device can do, and how that is known."""
  peak = known_peak(jax.devices()[0].device_kind)
  if peak:
    return peak * 1e12, f"peak, {peak} TFLOP/s"
  x = jnp.ones((MATMUL_SIDE, MATMUL_SIDE), dtype)
  multiply = jax.jit(jnp.matmul)
  found = measure({"matmul": lambda: multiply(x, x)}, rounds=3)
  rate = 2 * MATMUL_SIDE**3 / min(found["matmul"])
  return rate, f"rate of a large matrix product, {rate / 1e9:.0f} GFLOP/s"


def report(
  title: str,
  rows: Mapping[str, Row],
  longest: float,
  settings: Settings,
  peak: tuple[float, str],
) -> Iterator[str]:
  """Lines to print."""
  whole = rows[WHOLE]
  pieces = {name: row for name, row in rows.items() if name != WHOLE}
  with_torch = not math.isnan(whole.torch_both)
  device = jax.devices()[0].device_kind
  yield (
    f"{title}: {settings.backbone}, {settings.image_size} pixels,"
    f" {settings.batch} images, {settings.dtype}, on {device}"
  )
  yield (
    f"  {settings.batch / whole.both:.2f} images/s"
    f" (slowest round {settings.batch / longest:.2f}),"
    f" {whole.flops / settings.batch / 1e9:.1f} GFLOP/image,"
    f" {whole.flops / whole.both / peak[0]:.1%} of the {peak[1]}"
  )
  head = f"  {'':<24}{'forward':>9}{'+ backward':>11}{'share':>7}"
  head += f"{'GFLOP':>8}{'GFLOP/s':>9}"
  if with_torch:
    head += f"{'torchvision: forward':>22}{'+ backward':>11}{'speed':>8}"
  yield head + "   (ms, GFLOP: of an image)"
  total = Row(*map(sum, zip(*pieces.values(), strict=True)))
  for name, row in {**pieces, "sum of these": total, WHOLE: whole}.items():
    scale = 1e3 / settings.batch
    line = f"  {name:<24}{row.forward * scale:>9.2f}{row.both * scale:>11.2f}"
    line += f"{row.both / whole.both:>7.1%}"
    line += f"{row.flops / settings.batch / 1e9:>8.1f}"
    line += f"{row.flops / row.both / 1e9:>9.0f}"
    if with_torch:
      line += (
        f"{row.torch_forward * scale:>22.2f}{row.torch_both * scale:>11.2f}"
      )
      line += f"{row.torch_both / row.both:>7.2f}x"
    yield line.replace("nan", "  -")


def run() -> list[tuple[str, float, str]]:
  """(name, value, unit) of each figure, of a small student."""
  settings = Settings("resnet18", image_size=128, rois=16)
  rows, _ = profile(*make_student(settings), settings)
  whole = rows.pop(WHOLE)
  rate, how = peak_flops(settings.dtype)
  what = f"training step, {settings.backbone}, {settings.image_size} pixels"
  return [
    (what, settings.batch / whole.both, "images/s"),
    (f"{what}, FLOPs", whole.flops / settings.batch / 1e9, "GFLOP/image"),
    (f"{what}, utilisation", whole.flops / whole.both / rate, f"of {how}"),
    *(
      (f"{what}, {name}", row.both / whole.both, "of the whole step")
      for name, row in rows.items()
    ),
  ]


def main() -> None:
  """Measures as the command line says."""
  parser = argparse.ArgumentParser(
    description="Profile of the training step.",
    formatter_class=argparse.ArgumentDefaultsHelpFormatter,
  )
  for field in dataclasses.fields(Settings):
    parser.add_argument(
      f"--{field.name.replace('_', '-')}",
      type=type(field.default),
      default=field.default,
    )
  parser.add_argument("--torch", help="interpreter that has torchvision")
  parser.add_argument("--json", type=pathlib.Path, help="file to write to")
  options = vars(parser.parse_args())
  torch, file = options.pop("torch"), options.pop("json")
  settings = Settings(**options)

  peak = peak_flops(settings.dtype)
  start = run_torchvision(torch, settings) if torch else None
  with start or contextlib.nullcontext() as ask:
    profiles = {"student": profile(*make_student(settings), settings)}
    if ask:
      profiles["torchvision's layers"] = profile(
        *make_detector(settings), settings, ask
      )
  for title, (rows, longest) in profiles.items():
    print(*report(title, rows, longest, settings, peak), sep="\n", flush=True)
  if file:
    value = {
      "device": jax.devices()[0].device_kind,
      "settings": dataclasses.asdict(settings),
      "peak": peak,
      "profiles": {
        title: {name: row._asdict() for name, row in rows.items()}
        for title, (rows, _) in profiles.items()
      },
    }
    file.write_text(json.dumps(value, indent=1))


if __name__ == "__main__":
  main()
