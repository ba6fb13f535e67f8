"""The paper's weights of the task losses (3.2)."""

from collections.abc import Mapping


def paper_weights(
  student_batch: int,
  student_lr: float,
  teachers: Mapping[str, tuple[int, float]],
) -> dict[str, float]:
  """Weights w_i = b_s * lr_i / (b_i * lr_s) from the teachers' recipes.

  With them an example moves the student as far as it moved its teacher (paper
  3.2, after Goyal et al.'s rule that learning rates scale with batch sizes).

  Args:
    student_batch: b_s, examples in a batch of the student.
    student_lr: lr_s, learning rate of the student.
    teachers: (b_i, lr_i) by task.

  Raises:
    ValueError: a batch size or learning rate is not positive.
  """
  for name, (batch, lr) in {
    "the student": (student_batch, student_lr),
    **{f"the teacher of {task!r}": t for task, t in teachers.items()},
  }.items():
    if batch <= 0 or lr <= 0:
      raise ValueError(
        f"Batch size and learning rate of {name} are {batch} and {lr};"
        " expected positive numbers. Set the task's weight by hand if its"
        " teacher's recipe is not known."
      )
  return {
    task: student_batch * lr / (batch * student_lr)
    for task, (batch, lr) in teachers.items()
  }
