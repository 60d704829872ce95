from collections.abc import Callable
from pathlib import Path

import pytest

from fsrp_edge.models.classifier import ModelSpec, Preprocessing

MakeSpec = Callable[..., ModelSpec]


@pytest.fixture
def spec() -> MakeSpec:
    def make(
        shape: tuple[int, int, int] = (3, 32, 32),
        classes: int = 10,
        resize: int | None = None,
        interpolation: str = "bilinear",
        class_names: tuple[str, ...] | None = None,
    ) -> ModelSpec:
        return ModelSpec(
            architecture="test:none",
            input_shape=shape,
            classes=classes,
            mean=(0.5,) * shape[0],
            std=(0.5,) * shape[0],
            preprocessing=Preprocessing(resize=resize or max(shape[1:]), interpolation=interpolation),
            class_names=class_names,
        )

    return make


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = Path(__file__).parents[2] / "../shared/data"
    if not folder.is_dir():
        pytest.skip("../shared/data is not there")
    return folder
