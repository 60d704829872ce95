"""Classify an image with onnxruntime: python examples/run_onnxruntime.py FILE.onnx IMAGE."""

import sys

import numpy as np
import onnxruntime
from preprocess import load, tell

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
given = session.get_inputs()[0]
pixels = load(sys.argv[2])[None]
if given.type == "tensor(float)":
    pixels = pixels.astype(np.float32) / 255
(logits,) = session.run(None, {given.name: pixels})
tell(logits[0])
