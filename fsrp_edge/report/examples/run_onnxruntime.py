"""Classify an image with onnxruntime: python examples/run_onnxruntime.py FILE.onnx IMAGE."""

import sys

import numpy as np
import onnxruntime
from preprocess import load, tell

options = onnxruntime.SessionOptions()
options.add_session_config_entry("session.x64quantprecision", "1")  # int8 sums must not overflow on older x86
try:
    session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
except Exception:  # that mode of onnxruntime 1.32 refuses files whose operators share int8 weights or a constant
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
given = session.get_inputs()[0]
pixels = load(sys.argv[2])[None]
if given.type == "tensor(float)":
    pixels = pixels.astype(np.float32) / 255
(logits,) = session.run(None, {given.name: pixels})
tell(logits[0])
