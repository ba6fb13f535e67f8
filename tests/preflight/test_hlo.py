import pytest

from must_jax.preflight.hlo import Collective, collectives

PROGRAM = """\
HloModule jit_step, is_scheduled=true, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (input: f32[512,64]) -> f32[256,64] {
  %whole = f32[512,64]{1,0:T(8,128)} all-reduce(%input), channel_id=4, \
replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  ROOT %part = f32[256,64]{1,0} dynamic-slice(%whole, %at, %zero)
}

%started (p: bf16[128,64]) -> (bf16[128,64], bf16[256,64]) {
  %gathered.1 = bf16[256,64]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), \
channel_id=7, replica_groups=mesh['x'=2,'y'=4], device_ids=([4,2]T(1,0)) {'x'}
}

%finished (p: bf16[128,64]) -> bf16[256,64] {
  ROOT %gathered.2 = bf16[256,64]{1,0} all-gather(%p), channel_id=7, \
replica_groups=mesh['x'=2,'y'=4], device_ids=([4,2]T(1,0)) {'x'}
}

%condition (state: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  %i = s32[] get-tuple-element(%state), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %moved = u8[100]{0} collective-permute(%x), channel_id=9, \
source_target_pairs={{0,1},{1,0}}
  %scattered = f32[256,64] fusion(%y), calls=%all-reduce-scatter.1
}

%until (state: (s32[], pred[])) -> pred[] {
  ROOT %changed = pred[] get-tuple-element(%state), index=1
}

%change (state: (s32[], pred[])) -> (s32[], pred[]) {
  %any = pred[16]{0} all-reduce(%z), channel_id=10, replica_groups={}, \
to_apply=%add
}

%never (p: f32[8]) -> f32[8] {
  ROOT %r = f32[8] all-reduce(%p), channel_id=11, replica_groups={}
}

ENTRY %main (p0: f32[8]) -> f32[8] {
  %two = (f32[10]{0}, bf16[6]{0}) all-reduce(%p0, %q), channel_id=1, \
replica_groups=[2,4]<=[8], to_apply=%add, metadata={op_name="all-gather(x"}
  %alone = f32[1000] all-reduce(%p0), channel_id=2, \
replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
  %begin = (bf16[128,64], bf16[256,64]) fusion(%p0), calls=%started
  %end = bf16[256,64] fusion(%begin), calls=%finished
  %sent = (f32[64]{0}, f32[64]{0}, u32[], u32[]) collective-permute-start(%p0)\
, channel_id=12, source_target_pairs={{0,1}}
  %loop = (s32[], f32[8]) while(%init), condition=%condition, body=%body
  ROOT %until_done = (s32[], pred[]) while(%i), condition=%until, body=%change
}
"""


def test_counts_each_collective_as_often_as_it_runs():
  found = {c.kind: c for c in collectives(PROGRAM, num_devices=8)}
  scattered = 5 * 512 * 64 * 4
  assert found == {
    "reduce-scatter": Collective(
      "reduce-scatter", 5, scattered, scattered * 1 / 2
    ),
    "all-gather": Collective("all-gather", 1, 32768, 32768 / 2),
    "collective-permute": Collective(
      "collective-permute", 6, 5 * 100 + 256, 5 * 100 + 256
    ),
    # Of four, of one (nothing is sent), and of all eight.
    "all-reduce": Collective(
      "all-reduce", 3, 52 + 4000 + 16, 2 * (52 * 3 / 4 + 16 * 7 / 8)
    ),
  }


def test_most_sent_comes_first():
  sent = [c.sent for c in collectives(PROGRAM, num_devices=8)]
  assert sent == sorted(sent, reverse=True)


def test_a_program_for_one_device_sends_nothing():
  text = "ENTRY %main (p: f32[8]) -> f32[8] {\n  ROOT %p = f32[8] negate(%p)\n}"
  assert collectives(text, num_devices=1) == []


@pytest.mark.parametrize(
  ("line", "payload"),
  [
    ("%x = f32[8]{0} reduce-scatter(%p), replica_groups=[2,4]<=[8]", 4 * 32),
    (
      "%x = (f32[2]{0}, f32[8]{0}) all-gather-start(%p),"
      " replica_groups=[2,4]<=[8]",
      32,
    ),
    ("%x = bf16[4,4]{1,0} all-to-all(%p), replica_groups=[2,4]<=[8]", 32),
    ("%x = s4[16]{0} collective-permute(%p)", 8),
  ],
)
def test_payload_is_that_of_the_whole_array(line, payload):
  text = f"ENTRY %main (p: f32[8]) -> f32[8] {{\n  {line}\n}}"
  (found,) = collectives(text, num_devices=8)
  assert found.payload == payload


def test_a_part_of_a_mesh_axis_is_its_own_size():
  text = (
    "ENTRY %main (p: f32[8]) -> f32[8] {\n  %x = f32[16] all-gather(%p),"
    " replica_groups=mesh['x'=8] {'x':(1)4}, dimensions={0}\n}"
  )
  (found,) = collectives(text, num_devices=8)
  assert found.sent == 64 * 3 / 4
