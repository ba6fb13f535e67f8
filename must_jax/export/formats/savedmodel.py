"""TensorFlow's SavedModel, with the signature `serving_default`."""

from must_jax.export.formats.stablehlo import PLATFORMS
from must_jax.export.program import ANY, ExportProgram
from must_jax.storage.path import Path

ARTEFACT = "savedmodel/1"  # TensorFlow Serving wants folders of versions
REQUIRES = ("tensorflow",)
ANY_BATCH = True


def write(program: ExportProgram, directory: Path) -> None:
  """See `formats.Format`."""
  import jax
  from jax.experimental import jax2tf

  from must_jax.quiet_tensorflow import tf

  height, width = program.image_size
  count = "batch" if program.batch == ANY else program.batch
  predict = jax2tf.convert(
    program.apply,
    with_gradient=False,
    polymorphic_shapes=[
      None,
      f"({count}, {height}, {width}, 3)",
      f"({count}, 2)",
    ],
    native_serialization_platforms=PLATFORMS,
  )
  module = tf.Module()
  module.variables_ = jax.tree.map(
    lambda x: tf.Variable(x, trainable=False), program.variables
  )
  size = None if program.batch == ANY else program.batch
  module.predict = tf.function(
    lambda images, content_size: predict(
      module.variables_, images, content_size
    ),
    autograph=False,
    input_signature=[
      tf.TensorSpec([size, height, width, 3], tf.uint8, "images"),
      tf.TensorSpec([size, 2], tf.float32, "content_size"),
    ],
  )
  tf.saved_model.save(
    module,
    str(directory / ARTEFACT),
    signatures={"serving_default": module.predict.get_concrete_function()},
  )
