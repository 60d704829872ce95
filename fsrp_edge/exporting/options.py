"""What a user may decide about the files, beside formats and precisions."""

from typing import Literal

from pydantic import Field

from fsrp_edge.records import Record

CalibrationMethod = Literal["min-max", "entropy", "percentile", "mse"]


class ExportOptions(Record):
    """How files are quantized and what they take."""

    calibration_images: int = Field(256, ge=1)
    """Training images that int8 ranges are calibrated on."""
    calibration_method: CalibrationMethod = "min-max"
    """See `exporting.calibration`."""
    int8_max_drop: float | None = Field(None, ge=0, le=100)
    """Points of accuracy that an int8 file may lose against the fp32 file of its format; layers are kept in float, the
    most sensitive first, until that holds and its outputs pass the check against the network's. None: all layers are
    quantized, and a file that does not pass is refused. Which layers are sensitive is found on calibration images, how
    many have to stay on up to 1,000 evaluation images: a network knows its training images too well to lose on them
    what it loses on others."""
    uint8_input: bool = False
    """Take images as bytes 0 to 255 in place of float32 pixels in [0, 1]."""
    dynamic_batch: bool = False
    """Leave the batch size of ONNX files open."""


DEFAULTS = ExportOptions()
