"""A stand-in for gcloud: a queued resource is a file, a worker a directory."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys

FAKE = pathlib.Path(os.environ["FAKE"])
STATE = FAKE / "state"  # one line for each answer still to come
WORKERS = FAKE / "workers"


def main(args):
  assert args[:2] == ["compute", "tpus"]
  verb, *rest = args[3:]
  flags = dict(
    a.removeprefix("--").partition("=")[::2] for a in rest if a[:2] == "--"
  )
  assert flags["zone"] == "here"
  what = flags.get("command", "")
  if verb == "ssh":
    verb += f" {flags['worker']} " + next(
      name
      for name, sign in {
        "look": "now=none",
        "prepare": "tar xzf",
        "start": "setsid",
        "stop": "kill -TERM",
        "fetch": "cat must_jax/run.log",
      }.items()
      if sign in what
    )
  with (FAKE / "calls").open("a") as calls:
    calls.write(f"{verb}\n")
  match verb.split():
    case ["list"]:
      states = STATE.read_text().split() if STATE.exists() else [""]
      print(states[0])
      if states[1:]:
        STATE.write_text(" ".join(states[1:]))
    case ["create"]:
      (FAKE / "create").write_text(" ".join(args[2:]))
      STATE.write_text((FAKE / "states").read_text())
      for worker in range(2):
        (WORKERS / str(worker)).mkdir(parents=True)
    case ["delete"]:
      assert "force" in flags
      STATE.unlink()
      shutil.rmtree(WORKERS, ignore_errors=True)
    case ["describe"]:
      print("no such accelerator type")
    case ["scp"]:
      for worker in WORKERS.iterdir():
        shutil.copy(rest[0], worker / rest[1].partition(":")[2])
    case ["ssh", *_]:
      return ssh(flags["worker"], what)
    case _:
      raise SystemExit(f"unexpected: {args}")
  return 0


def ssh(worker, command):
  preempted = FAKE / "preempted"
  if preempted.exists():
    preempted.unlink()
    for pid in WORKERS.glob("*/must_jax/pid"):
      with contextlib.suppress(ProcessLookupError):
        os.killpg(int(pid.read_text()), signal.SIGKILL)
    shutil.rmtree(WORKERS)
    STATE.write_text("SUSPENDING SUSPENDED")
    return 255
  names = sorted(os.listdir(WORKERS)) if worker == "all" else [worker]
  statuses = [
    subprocess.run(
      ["bash", "-c", command],
      cwd=WORKERS / name,
      env=os.environ | {"HOME": str(WORKERS / name)},
      check=False,
    ).returncode
    for name in names
  ]
  return next(filter(None, statuses), 0)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
