"""Which part of a model a compiled step's work is for."""

import pytest

from must_jax.preflight.step_parts import split_work, table

MODULES = ("backbone", "head_boxes")


def cycles(count):
  return f'backend_config={{"window_config":{{"estimated_cycles":"{count}"}}}}'


def name(path):
  return f'metadata={{op_name="jit(step)/{path}" stack_frame_id=1}}'


# In the words of XLA's text; of types only what is read.
PROGRAM = f"""\
HloModule jit_step, is_scheduled=true

%fused_conv (a: bf16[4,8], b: bf16[8,2]) -> f32[4,2] {{
  %a = bf16[4,8]{{1,0:T(8,128)}} parameter(0)
  %b = bf16[8,2]{{1,0}} parameter(1)
  ROOT %c = f32[4,2]{{1,0}} convolution(%a, %b), dim_labels=bf_io->bf
}}

%fused_pad (p: pred[7]) -> pred[9] {{
  %p = pred[7]{{0}} parameter(0)
  ROOT %q = pred[9]{{0}} pad(%p, %p), padding=1_1
}}

%body (t: (s32[], f32[10])) -> (s32[], f32[10]) {{
  %t = (s32[], f32[10]) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[10]{{0}} get-tuple-element(%t), index=1
  %y = f32[10]{{0}} multiply(%x, %x), {name("jvp(M.head)/head_boxes/head_boxes.nms/while/body/mul")}, {cycles(50)}
  ROOT %u = (s32[], f32[10]) tuple(%i, %y)
}}

%condition (t: (s32[], f32[10])) -> pred[] {{
  %n = s32[]{{:T(128)}} constant(6)
  %t = (s32[], f32[10]) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  ROOT %less = pred[] compare(%i, %n), direction=LT
}}

ENTRY %main (a: bf16[4,8], b: bf16[8,2], p: pred[7]) -> f32[4,2] {{
  %a = bf16[4,8]{{1,0:T(8,128)}} parameter(0)
  %b = bf16[8,2]{{1,0}} parameter(1)
  %p = pred[7]{{0}} parameter(2)
  %x = f32[4,2]{{1,0}} fusion(%a, %b), kind=kOutput, calls=%fused_conv, {name("jvp(M.trunk)/backbone/conv1/conv")}, {cycles(600)}
  %pad = pred[9]{{0}} fusion(%p), kind=kLoop, calls=%fused_pad, {name("transpose(jvp(M.trunk))/backbone/conv1/pad")}, {cycles(40)}
  %small = f32[2]{{0}} add(%x, %x), {name("jvp(M.trunk)/backbone/norm1/add")}, {cycles(1)}
  %up = f32[2]{{0}} reverse(%small), {name("transpose(jvp(MyModel.neck))/jit(_resize)/rev")}, {cycles(100)}
  %ahead = (f32[4,2]{{1,0}}, f32[4,2]{{1,0:S(1)}}, u32[]) copy-start(%x)
  %there = f32[4,2]{{1,0:S(1)}} copy-done(%ahead)
  %both = f32[8,2]{{1,0:S(1)}} custom-call(%there, %there), custom_call_target="ConcatBitcast"
  %s = (f32[10]{{0}}, s32[10]{{0}}) sort(%x, %x), dimensions={{0}}, to_apply=%less, {name("jvp()/sort")}
  %loop = (s32[], f32[10]{{0}}) while(%s), condition=%condition, body=%body, {name("jvp(M.head)/head_boxes/head_boxes.nms/while")}
  %sum = f32[4,2]{{1,0}} all-reduce(%x), channel_id=1, to_apply=%less, {name("transpose(jvp(M.trunk))/backbone/conv1/dot")}
  ROOT %new = f32[4,2]{{1,0}} subtract(%x, %sum), {name("sub")}, {cycles(59)}
}}
"""  # noqa: E501


def test_work_is_that_of_the_modules_it_is_for():
  work = {
    (w.part, w.kind): (w.cycles, w.num_bytes, w.unknown_bytes)
    for w in split_work(PROGRAM, MODULES)
  }
  assert work == {
    # 4 x 8 and 8 x 2 of two bytes, 4 x 2 of four.
    ("backbone: conv1", "products"): (600, 64 + 32 + 32, 0),
    ("backbone: conv1", "moves"): (40, 7 + 9, 0),
    ("backbone: conv1", "sent"): (0, 64, 64),
    # One cycle is no row of its own.
    ("backbone", "arithmetic"): (1, 8 + 2 * 32, 0),
    # Six times.
    ("head_boxes: nms", "arithmetic"): (6 * 50, 6 * 3 * 40, 0),
    ("neck", "moves"): (100, 16, 0),
    ("losses", "moves"): (0, 80 + 2 * 32, 80 + 2 * 32),
    ("update and the rest", "arithmetic"): (59, 3 * 32, 0),
  }


@pytest.mark.parametrize(
  "condition",
  [
    "ROOT %less = pred[] and(%i, %n)",
    "ROOT %less = pred[] compare(%i, %i), direction=GT",
  ],
)
def test_a_loop_that_depends_on_data_counts_once(condition):
  line = "ROOT %less = pred[] compare(%i, %n), direction=LT"
  assert line in PROGRAM
  work = split_work(PROGRAM.replace(line, condition), MODULES)
  (loop,) = [w for w in work if w.part == "head_boxes: nms"]
  assert loop.cycles == 50


def test_shares_add_up_to_all():
  lines = table(split_work(PROGRAM, MODULES))
  assert len({len(line) for line in lines}) == 1
  words = [line.split() for line in lines[1:]]
  rows = {" ".join(those[:-6]): those[-6:] for those in words}
  assert rows["all"][:4] == ["100.0%", "54.5%", "32.7%", "12.7%"]
  assert rows["backbone: conv1"][:4] == ["58.2%", "54.5%", "0.0%", "3.6%"]
  assert rows["head_boxes: nms"][0] == "27.3%"
  assert rows["all"][4] == "100.0%"
