"""Classify an image with ncnn: python examples/run_ncnn.py FOLDER.ncnn IMAGE."""

import sys

import ncnn
import numpy as np
from preprocess import load, tell

network = ncnn.Net()
network.load_param(f"{sys.argv[1]}/model.param")
network.load_model(f"{sys.argv[1]}/model.bin")
extractor = network.create_extractor()
pixels = np.ascontiguousarray(load(sys.argv[2]).astype(np.float32) / 255)
extractor.input("in0", ncnn.Mat(pixels))
tell(np.array(extractor.extract("out0")[1]))
