import pytest

from must_jax.preflight import plan_text

PLAN = {
  "config": "configs/student.py",
  "overrides": ["--config.mesh.fsdp=4"],
  "assumed_classes": {},
  "stage": "train",
  "topology": "v5e:16x16",
  "chips": 256,
  "hosts": 64,
  "hbm": 15.75 * 2**30,
  "host_cores": 112,
  "parameters": 73_000_000,
  "checkpoint_bytes": 584_000_000,
  "batch_size": 256,
  "accumulate": 1,
  "images_per_chip": 1.0,
  "flops_per_image": 1.5e12,
  "step": {
    "hbm": 6 * 2**30,
    "fits": True,
    "flops": 1.6e12,
    "least_bytes": 9e9,
    "xla_bytes": 40e9,
    "sent": 291e6,
    "seconds": 100.0,
    "work": None,
  },
  "bounds": {"operations": 0.008, "memory": 0.011, "links": 0.003},
  "largest_per_chip": None,
  "step_seconds": [0.045, 0.022, 0.011],
  "images_per_second": [5689.0, 11636.0, 23273.0],
  "images": 1_281_167,
  "steps": 450_000,
  "epoch_hours": [0.0626, 0.0306, 0.0153],
  "run_hours": [5.625, 2.75, 1.375],
  "cores_per_host": [0.3, 0.7, 1.5],
  "bytes_per_second_per_host": [1e7, 2e7, 4e7],
  "label_bytes": {"detection": 2460.0},
}


@pytest.mark.parametrize(
  "line",
  [
    "config                  configs/student.py --config.mesh.fsdp=4",
    "slice                   v5e:16x16: 256 chips, 64 hosts",
    "batch                   256 images, 1 a chip",
    "HBM, a chip             6.0 of 15.8 GiB",
    "sent by a chip          at least 291 MB of gradients and parameters",
    "bounds, ms              operations 8, memory 11, links 3; no step can be"
    " faster",
    "the run                 2.75 h to 5.62 h (704 to 1,440 chip-hours); bound"
    " 1.38 h",
    "labels, detection       at most 2.46 kB an image, 3.15 GB",
  ],
)
def test_text_says_what_is_needed(line):
  assert line in plan_text.text(PLAN).splitlines()


def test_classes_that_are_assumed_are_said():
  classes = {"detection": 365, "segmentation": 133}
  text = plan_text.text(PLAN | {"assumed_classes": classes})
  assert "  detection 365, segmentation 133: the paper's, for no labels" in text
  assert "the paper's" not in plan_text.text(PLAN)


def test_what_does_not_fit_is_said_aloud():
  step = PLAN["step"] | {"hbm": 20 * 2**30, "fits": False}
  text = plan_text.text(PLAN | {"step": step})
  assert "at least 20.0 of 15.8 GiB: DOES NOT FIT" in text


def test_without_a_compiler_the_rest_is_said():
  text = plan_text.text(PLAN | {"step": None, "bounds": {"operations": 0.008}})
  assert "HBM, a chip          not known" in text
  assert "pip install 'must_jax[tpu]'" in text
  assert "73.0 M" in text


def test_an_epoch_of_unknown_size_asks_for_it():
  text = plan_text.text(PLAN | {"images": None, "epoch_hours": None})
  assert "--images N" in text


@pytest.mark.parametrize(
  ("value", "expected"),
  [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (4.78e13, "47.8 TB")],
)
def test_bytes_are_in_units_of_1000(value, expected):
  assert plan_text.num_bytes(value) == expected


def test_text_shows_the_parts_of_a_step_if_they_are_known():
  work = {"part": "backbone", "kind": "products", "cycles": 9}
  work |= {"num_bytes": 5, "unknown_bytes": 0}
  plan = PLAN | {"step": PLAN["step"] | {"work": [work]}}
  lines = plan_text.text(plan).split("\n")
  assert " ".join(lines[-2].split()) == (
    "backbone 100.0% 100.0% 0.0% 0.0% 100.0% 0.0%"
  )
  assert "by part" not in plan_text.text(PLAN)
  plan["step"]["work"] = []
  assert plan_text.text(plan).endswith("of a step that does not fit.")
