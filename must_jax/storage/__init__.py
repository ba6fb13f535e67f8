"""Files, records, and the sets that are made of them."""

import os

# TensorFlow only reads and decodes here; its greetings are not for our users.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
