import csv
import json
from pathlib import Path

import jsonschema
import pytest

from fsrp_edge.bench.address import parse_address
from fsrp_edge.bench.fleet import measure_fleet
from fsrp_edge.bench.results import BenchResults
from fsrp_edge.bench.setup import Method, Setup
from fsrp_edge.errors import BadInputError
from fsrp_edge.files import write_json

PUBLISHED = Path(__file__).parents[2] / "docs" / "bench.schema.json"
SHORT = Method(warmup_runs=1, warmup_seconds=0, runs=4, seconds=0, rounds=2)


@pytest.fixture(scope="module")
def measured(onnx_file) -> BenchResults:
    return measure_fleet([parse_address("local")], [onnx_file], Setup(), method=SHORT)


def test_results_fulfil_the_published_schema_and_can_be_read_again(measured, tmp_path):
    path = tmp_path / "results.json"
    measured.save(path)
    jsonschema.Draft202012Validator(json.loads(PUBLISHED.read_text())).validate(json.loads(path.read_text()))
    assert BenchResults.load(path) == measured
    assert len(measured.measurements[0].times_ms) == measured.measurements[0].latency.runs == 4


def test_csv_has_one_line_a_measurement(measured):
    (row,) = csv.DictReader(measured.to_csv().splitlines())
    latency = measured.measurements[0].latency
    assert (row["address"], row["model"]) == ("local", "tiny.onnx")
    assert (float(row["p50_ms"]), float(row["p50_low_ms"])) == (latency.p50_ms, latency.p50_interval_ms[0])
    assert float(row["peak_memory_mb"]) > 10


@pytest.mark.parametrize("content", [{}, [], {"schema_version": 2}, "x"])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "other.json"
    write_json(path, content)
    with pytest.raises(BadInputError, match=r"other.json is not a result of `fsrp-edge bench --out`"):
        BenchResults.load(path)


def test_a_broken_file_does_not_take_the_others_along(onnx_file, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(onnx_file.read_bytes()[:200])
    results = measure_fleet([parse_address("local")], [broken, onnx_file], Setup(), method=SHORT)
    assert [one.latency.model for one in results.measurements] == ["tiny.onnx"]
    assert len(results.measurements[0].times_ms) == 4
    (failure,) = results.failures
    assert failure.address == "local"
    assert failure.message.startswith("broken.onnx: ")
