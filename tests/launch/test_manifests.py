"""Manifests against the fields of the APIs they are for."""

import math
import pathlib

import pytest
import yaml

from must_jax.config import PREEMPTED
from must_jax.pseudo_label.job import ALARM

GKE = pathlib.Path(__file__).parents[2] / "launch" / "gke"

# A schema is a type, a tuple of the values allowed, a list with the schema of
# its elements, or a dict of fields; those that end with "!" are required, and
# "*" stands for any name. Fields that are not named are errors: Kubernetes
# ignores some of them in silence.
NAMES = {"*": str}
EXIT_CODES = {
  "containerName": str,
  "operator!": ("In", "NotIn"),
  "values!": [int],
}
POD = {  # core/v1 PodSpec
  "restartPolicy!": ("Never", "OnFailure"),
  "serviceAccountName": str,
  "terminationGracePeriodSeconds": int,
  "nodeSelector": NAMES,
  "tolerations": [
    {
      "key": str,
      "operator": ("Exists", "Equal"),
      "value": str,
      "effect": ("NoSchedule", "PreferNoSchedule", "NoExecute"),
    }
  ],
  "containers!": [
    {
      "name!": str,
      "image!": str,
      "env": [
        {
          "name!": str,
          "value": str,
          "valueFrom": {"fieldRef": {"fieldPath!": str}},
        }
      ],
      "command": [str],
      "args": [str],
      "resources": {"limits": {"*": int}, "requests": {"*": (int, str)}},
      "securityContext": {
        "runAsUser": int,
        "runAsNonRoot": bool,
        "allowPrivilegeEscalation": bool,
        "capabilities": {"drop": [str]},
      },
    }
  ],
}
JOB = {  # batch/v1 JobSpec
  "parallelism!": int,
  "completions!": int,
  "completionMode!": ("NonIndexed", "Indexed"),
  "backoffLimit": int,
  "backoffLimitPerIndex": int,
  "podFailurePolicy": {
    "rules!": [
      {
        "action!": ("FailJob", "FailIndex", "Ignore", "Count"),
        "onExitCodes": EXIT_CODES,
        "onPodConditions": [{"type!": str, "status": str}],
      }
    ]
  },
  "template!": {"spec!": POD},
}
METADATA = {"name!": str, "labels": NAMES, "annotations": NAMES}
SCHEMAS = {
  "train": {  # jobset.x-k8s.io/v1alpha2
    "apiVersion!": ("jobset.x-k8s.io/v1alpha2",),
    "kind!": ("JobSet",),
    "metadata!": METADATA,
    "spec!": {
      "failurePolicy": {
        "maxRestarts": int,
        "restartStrategy": ("Recreate", "BlockingRecreate"),
        "rules": [
          {
            "name!": str,
            "action!": (
              "FailJobSet",
              "RestartJobSet",
              "RestartJobSetAndIgnoreMaxRestarts",
            ),
            "onJobFailureReasons": [
              ("BackoffLimitExceeded", "DeadlineExceeded", "PodFailurePolicy")
            ],
            "targetReplicatedJobs": [str],
          }
        ],
      },
      "replicatedJobs!": [
        {"name!": str, "replicas": int, "template!": {"spec!": JOB}}
      ],
    },
  },
  "label": {
    "apiVersion!": ("batch/v1",),
    "kind!": ("Job",),
    "metadata!": METADATA,
    "spec!": JOB,
  },
}


def problems(value, schema, where=""):
  """Says where a value does not fit a schema."""
  if isinstance(schema, list):
    if not isinstance(value, list) or not value:
      return [f"{where} is {value!r}"]
    return [
      problem
      for i, v in enumerate(value)
      for problem in problems(v, schema[0], f"{where}[{i}]")
    ]
  if isinstance(schema, dict):
    if not isinstance(value, dict):
      return [f"{where} is {value!r}"]
    fields = {name.rstrip("!"): s for name, s in schema.items()}
    required = {name[:-1] for name in schema if name.endswith("!")}
    found = [f"{where}.{name} is missing" for name in required - set(value)]
    for name, v in value.items():
      if field := fields.get(name, fields.get("*")):
        found += problems(v, field, f"{where}.{name}")
      else:
        found.append(f"{where}.{name} is no field")
    return found
  allowed = schema if isinstance(schema, tuple) else (schema,)
  good = value in allowed or type(value) in allowed
  return [] if good else [f"{where} is {value!r}"]


def read(name):
  return yaml.safe_load((GKE / f"{name}.yaml").read_text())


def job(name):
  spec = read(name)["spec"]
  if name == "label":
    return spec
  (replicated,) = spec["replicatedJobs"]
  return replicated["template"]["spec"]


both = pytest.mark.parametrize("name", ["train", "label"])


@both
def test_every_field_is_one_of_the_api(name):
  assert problems(read(name), SCHEMAS[name]) == []


def test_mistakes_are_found():
  manifest = read("train")
  manifest["spec"]["failurePolicy"]["maxRestart"] = 3
  del manifest["metadata"]["name"]
  spec = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
  spec["parallelism"] = "4"
  spec["podFailurePolicy"]["rules"][0]["action"] = "Restart"
  assert sorted(problems(manifest, SCHEMAS["train"])) == [
    ".metadata.name is missing",
    ".spec.failurePolicy.maxRestart is no field",
    ".spec.replicatedJobs[0].template.spec.parallelism is '4'",
    ".spec.replicatedJobs[0].template.spec.podFailurePolicy.rules[0].action"
    " is 'Restart'",
  ]


@both
def test_jobs_are_valid_by_the_schemas_of_kubernetes(name):
  validate = pytest.importorskip("kubernetes_validate")
  metadata = {"name": "x"}
  whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata}
  validate.validate(whole | {"spec": job(name)}, "1.33", strict=True)


@both
def test_pods_are_not_started_again_in_place(name):
  # A podFailurePolicy allows no other; and one process is nothing alone.
  assert job(name)["template"]["spec"]["restartPolicy"] == "Never"
  assert job(name)["completionMode"] == "Indexed"
  assert job(name)["parallelism"] == job(name)["completions"]


@both
def test_jobs_wait_in_a_queue_of_kueue(name):
  assert read(name)["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]


@both
def test_the_command_is_main_with_config_and_workdir(name):
  (container,) = job(name)["template"]["spec"]["containers"]
  names = [entry["name"] for entry in container["env"] if "value" in entry]
  assert container["command"] == ["python", "main.py"]
  assert container["args"][:2] == ["--config=$(CONFIG)", "--workdir=$(WORKDIR)"]
  assert names[:2] == ["CONFIG", "WORKDIR"]


def test_labelling_workers_know_which_of_how_many_they_are():
  (container,) = job("label")["template"]["spec"]["containers"]
  environ = {entry["name"]: entry for entry in container["env"]}
  count = environ["MUST_JAX_WORKER_COUNT"]["value"]
  assert int(count) == job("label")["completions"]
  index = environ["MUST_JAX_WORKER_INDEX"]["valueFrom"]["fieldRef"]
  assert index["fieldPath"] == (
    "metadata.annotations['batch.kubernetes.io/job-completion-index']"
  )


def actions(name):
  """{status or condition: action} of a Job's podFailurePolicy."""
  (container,) = job(name)["template"]["spec"]["containers"]
  found = {}
  for rule in job(name)["podFailurePolicy"]["rules"]:
    if "onExitCodes" in rule:
      assert rule["onExitCodes"]["containerName"] == container["name"]
      keys = rule["onExitCodes"]["values"]
    else:
      keys = [condition["type"] for condition in rule["onPodConditions"]]
    found |= dict.fromkeys(keys, rule["action"])
  return found


def test_training_that_saved_itself_starts_again_for_free():
  assert actions("train") == {
    PREEMPTED: "FailJob",
    "DisruptionTarget": "FailJob",
  }
  assert job("train")["backoffLimit"] == 0
  policy = read("train")["spec"]["failurePolicy"]
  by_reason = {
    reason: rule["action"]
    for rule in policy["rules"]
    for reason in rule["onJobFailureReasons"]
  }
  assert by_reason == {
    "PodFailurePolicy": "RestartJobSetAndIgnoreMaxRestarts",
    "BackoffLimitExceeded": "RestartJobSet",
  }
  assert policy["maxRestarts"] > 0


def test_training_has_a_pod_for_each_host_of_the_slice():
  pod = job("train")["template"]["spec"]
  topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
  chips = math.prod(map(int, topology.split("x")))
  a_pod = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
  assert job("train")["parallelism"] * a_pod == chips


def test_a_labelling_worker_that_is_lost_is_replaced_for_free():
  assert actions("label") == {
    PREEMPTED: "Ignore",
    "DisruptionTarget": "Ignore",
    ALARM: "FailJob",
  }
  assert job("label")["backoffLimitPerIndex"] > 0
