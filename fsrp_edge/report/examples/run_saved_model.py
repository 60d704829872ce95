"""Classify an image with TensorFlow: python examples/run_saved_model.py FOLDER.saved_model IMAGE."""

import sys

import numpy as np
import tensorflow as tf
from preprocess import load, tell

model = tf.saved_model.load(sys.argv[1])
pixels = load(sys.argv[2]).transpose(1, 2, 0)[None].astype(np.float32) / 255
call = model.signatures["serving_default"]
(name,) = call.structured_input_signature[1]
(logits,) = call(**{name: tf.constant(pixels)}).values()
tell(logits.numpy()[0])
