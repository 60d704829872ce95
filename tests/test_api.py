import subprocess
import sys

import pytest

import fsrp_edge


def test_every_name_of_the_api_can_be_used() -> None:
    import fsrp_edge.pipeline.compress  # which imports every room, of which some have the name of what they do

    for name in fsrp_edge.__all__:
        found = getattr(fsrp_edge, name)
        assert name == "__version__" or callable(found), name


def test_a_name_that_does_not_exist_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'fsrp_edge' has no attribute 'comprss'"):
        _ = fsrp_edge.comprss


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = "import sys, fsrp_edge; print(sorted({'torch', 'numpy', 'pydantic', 'click'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_training_needs_no_exporter() -> None:
    """Nothing of the extras is imported before it is used."""
    program = (
        "import sys, torch, fsrp_edge; print(fsrp_edge.compress, fsrp_edge.score, fsrp_edge.recover)\n"
        "extras = {'onnx', 'onnxruntime', 'onnxsim', 'litert_torch', 'ai_edge_litert', 'ai_edge_quantizer',"
        " 'tensorflow', 'sklearn', 'skimage', 'timm'}\n"
        "print(sorted(extras & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\n[]\n")
