import subprocess
import sys

IMPORT = "from fsrp_edge import torchvision_compat as compat\n"


def run(code: str) -> str:
    """Run in a fresh interpreter: what is declared in this one stays declared."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_torchvision_imports_and_declares_exactly_where_its_own_operators_do_not_load():
    code = IMPORT + (
        "import torch, torchvision, torchvision.extension as extension\n"
        "model = torchvision.models.resnet18(weights=None, num_classes=3).eval()\n"
        "print(tuple(model(torch.zeros(1, 3, 64, 64)).shape))\n"
        "print(extension._has_ops() == (compat._declared is None))\n"
    )
    assert run(code) == "(1, 3)\nTrue"


def test_a_matched_pair_is_left_alone(tmp_path):
    """A stand-in torchvision whose library loads: any shared object of the interpreter serves."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import shutil, numpy._core._multiarray_umath as compiled\n"
        f"shutil.copy(compiled.__file__, {str(package / '_C.so')!r})\n"
        + IMPORT
        + "import torch\nprint(compat._declared, hasattr(torch.ops.torchvision, 'nms'))"
    )
    assert run(code) == "None False"
