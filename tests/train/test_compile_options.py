"""What compilers are told to do otherwise than they would."""

from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from must_jax.config import base_config, small, task
from must_jax.preflight.chips import Slice
from must_jax.preflight.compiled import lower_labelling
from must_jax.preflight.step_parts import split_work
from must_jax.train import compile_options as compile_options_lib
from must_jax.train import mesh as mesh_lib
from must_jax.train import step as step_lib
from must_jax.train.build import build
from must_jax.train.compile_options import compile_options
from must_jax.train.step import make_predict_step


def mesh_of(platform, size):
  return SimpleNamespace(
    local_devices=[SimpleNamespace(platform=platform)], size=size
  )


@pytest.fixture
def known(monkeypatch):
  monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
  monkeypatch.setattr(compile_options_lib, "_are_known", lambda device: True)


@pytest.mark.parametrize(
  "platform, num_images, expected",
  [
    ("cpu", 64, False),
    ("gpu", 64, False),
    ("tpu", 8, False),  # one a chip
    ("tpu", 16, True),
    ("tpu", 64, True),
  ],
)
def test_tpus_with_several_images_compute_whole_maps(
  known, platform, num_images, expected
):
  options = compile_options(mesh_of(platform, 8), num_images)
  assert bool(options) == expected


def test_what_the_user_says_of_it_stays(known, monkeypatch):
  flags = "--xla_tpu_run_space_to_batch=true"
  monkeypatch.setenv("LIBTPU_INIT_ARGS", flags)
  assert compile_options(mesh_of("tpu", 1), 4) is None


def test_options_that_the_compiler_lacks_are_left_out(monkeypatch, caplog):
  # A CPU's has none of them.
  cpu = jax.devices("cpu")[0]
  monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
  ask = compile_options_lib._are_known
  monkeypatch.setattr(compile_options_lib, "_are_known", lambda _: ask(cpu))
  assert compile_options(mesh_of("tpu", 1), 4) is None
  assert "does not take xla_tpu_run_space_to_batch" in caplog.text


def test_steps_ask_for_their_images_and_compile_with_the_answer(monkeypatch):
  config = base_config()
  config.tasks.kind = task("classification", labels={}, classes=("a", "b"))
  config = small(config)
  config.data.batch_size = 8 * jax.device_count()
  config.train.accumulate = 2
  asked = []

  def answer(mesh, num_images):
    asked.append(num_images / mesh.size)
    return {"no_such_option": True}

  monkeypatch.setattr(step_lib, "compile_options", answer)
  program = build(config)
  with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
    program.lower().compile()
  images = program.abstract_batch["image"]
  predict = make_predict_step(program.model, program.tasks, program.mesh)
  with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
    predict.lower(program.abstract_state.variables, images).compile()
  (kind,) = program.tasks.values()
  planned = lower_labelling(config, kind, config.data.batch_size)
  with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
    planned.step.compile()
  assert asked == [4, 8, 8]


@pytest.mark.slow
# What was compiled for a TPU that is not there is cached, but cannot be loaded.
@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")
@pytest.mark.parametrize("images", [1, 4])
def test_a_tpu_computes_few_images_whole(images):
  pytest.importorskip("libtpu")
  mesh = mesh_lib.make_mesh(devices=Slice.parse("v5e-4").devices())
  sharding = mesh_lib.batch_sharding(mesh)
  maps = jax.ShapeDtypeStruct(
    (images * mesh.size, 80, 80, 64), jnp.bfloat16, sharding=sharding
  )
  kernel = jax.ShapeDtypeStruct(
    (3, 3, 64, 64), jnp.bfloat16, sharding=mesh_lib.replicated(mesh)
  )

  def layers(maps, kernel):
    for _ in range(3):
      maps = jax.nn.relu(nn.Conv(64, (3, 3)).apply({"params": kernel}, maps))
    return maps

  def cycles(options):
    text = (
      jax.jit(layers, compiler_options=options)
      .lower(maps, {"kernel": kernel, "bias": jnp.zeros(64, jnp.bfloat16)})
      .compile()
      .as_text()
    )
    return sum(w.cycles for w in split_work(text, ()))

  ours = compile_options(mesh, images * mesh.size)
  whole = cycles(compile_options_lib._WHOLE_MAPS)
  assert (ours is None) == (images == 1)
  assert cycles(ours) <= min(whole, cycles(None))
