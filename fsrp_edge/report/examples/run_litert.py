"""Classify an image with LiteRT or TensorFlow: python examples/run_litert.py FILE.tflite IMAGE."""

import sys

import numpy as np
from preprocess import load, tell

try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:
    import tensorflow as tf

    Interpreter = tf.lite.Interpreter

interpreter = Interpreter(model_path=sys.argv[1])
interpreter.allocate_tensors()
given, made = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
pixels = load(sys.argv[2]).transpose(1, 2, 0)[None]
if given["dtype"] == np.float32:
    pixels = pixels.astype(np.float32) / 255
interpreter.set_tensor(given["index"], pixels)
interpreter.invoke()
tell(interpreter.get_tensor(made["index"])[0])
