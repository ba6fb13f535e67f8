"""A headless browser that tests drive, over the DevTools protocol's pipe."""

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time


def find():
  """Path of a browser, or None."""
  return shutil.which("chromium") or shutil.which("google-chrome")


# The protocol's commands come by file 3, answers go by file 4.
_START = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
_SECONDS = 15  # that an answer may take


class Browser:
  """A page in a browser.

  Args:
    profile: directory that it may fill.
    size: of the window, pixels.
    dark: whether people prefer dark pages.
  """

  def __init__(self, profile, size=(1400, 900), dark=False):
    reader, child_out = os.pipe()
    child_in, writer = os.pipe()
    self._process = subprocess.Popen(
      [
        *(sys.executable, "-c", _START, str(child_in), str(child_out)),
        *(find(), "--headless", "--no-sandbox", "--disable-gpu"),
        *("--remote-debugging-pipe", f"--user-data-dir={profile}"),
        *("--hide-scrollbars", f"--window-size={size[0]},{size[1]}"),
        "about:blank",
      ],
      pass_fds=(child_in, child_out),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    os.close(child_in)
    os.close(child_out)
    self._in, self._out = os.fdopen(writer, "wb"), os.fdopen(reader, "rb")
    self._number, self._rest, self._session = 0, b"", None
    self.errors = []
    try:
      self._attach(size, dark)
    except BaseException:
      self.close()
      raise

  def _attach(self, size, dark):
    targets = self.call("Target.getTargets")["targetInfos"]
    (target,) = [t["targetId"] for t in targets if t["type"] == "page"]
    attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
    self._session = attached["sessionId"]
    self.call("Page.enable")
    self.call("Runtime.enable")
    scheme = {"name": "prefers-color-scheme", "value": "dark"}
    self.call("Emulation.setEmulatedMedia", features=[scheme] if dark else [])
    width, height = size
    self.call(
      "Emulation.setDeviceMetricsOverride",
      width=width,
      height=height,
      deviceScaleFactor=1,
      mobile=False,
    )

  def close(self):
    with contextlib.suppress(OSError):
      self.call("Browser.close")
    with contextlib.suppress(OSError):
      self._in.close()
    self._out.close()
    try:
      self._process.wait(10)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()

  def call(self, method, **params):
    """The result of a command; events are passed over, but for errors."""
    self._number += 1
    message = {"id": self._number, "method": method, "params": params}
    if self._session and not method.startswith(("Target.", "Browser.")):
      message["sessionId"] = self._session
    self._in.write(json.dumps(message).encode() + b"\0")
    self._in.flush()
    while True:
      found = self._read()
      if found.get("method") == "Runtime.exceptionThrown":
        self.errors.append(found["params"]["exceptionDetails"])
      if found.get("id") == self._number:
        assert "error" not in found, found["error"]
        return found["result"]

  def _read(self):
    while b"\0" not in self._rest:
      if not select.select([self._out], [], [], _SECONDS)[0]:
        raise OSError("the browser does not answer")
      data = self._out.read1(1 << 20)
      if not data:
        raise OSError("the browser has gone")
      self._rest += data
    line, self._rest = self._rest.split(b"\0", 1)
    return json.loads(line)

  def run(self, code):
    """The value of an expression in the page; promises are awaited."""
    found = self.call(
      "Runtime.evaluate",
      expression=code,
      awaitPromise=True,
      returnByValue=True,
      userGesture=True,
    )
    assert "exceptionDetails" not in found, found["exceptionDetails"]
    return found["result"].get("value")

  def wait(self, code, seconds=30):
    """Waits until an expression is true."""
    end = time.monotonic() + seconds
    while not self.run(code):
      assert time.monotonic() < end, f"{code} is not true"
      time.sleep(0.02)

  def open(self, url, ready="document.body?.dataset.ready === 'yes'"):
    """Opens a page and waits for it."""
    self.call("Page.navigate", url=url)
    self.wait(ready)

  def press(self, *keys):
    """Presses keys, one after the other."""
    for key in keys:
      text = {"text": key} if len(key) == 1 else {}
      if key == "Enter":
        text = {"text": "\r"}
      for kind in ("keyDown", "keyUp"):
        self.call(
          "Input.dispatchKeyEvent",
          type=kind,
          key=key,
          **(text if kind == "keyDown" else {}),
        )

  def set(self, id_, value, event="input"):
    """Gives a control a value as people do."""
    self.run(
      f"(() => {{ const it = document.getElementById({json.dumps(id_)});"
      f" it.value = {json.dumps(str(value))};"
      f" it.dispatchEvent(new Event({json.dumps(event)}, {{bubbles: true}}));"
      " })()"
    )
    self.wait("document.body.dataset.ready === 'yes'")

  def shoot(self, path):
    """Writes a screenshot as PNG."""
    import base64

    found = self.call("Page.captureScreenshot", format="png")
    path.write_bytes(base64.b64decode(found["data"]))
