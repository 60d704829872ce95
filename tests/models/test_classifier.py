import pytest
import torch
from torch import Tensor, nn

from tests.nets import as_classifier


class Particular(nn.Module):
    """Code that takes its maps as they usually lie, and raises something of its own where they don't."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.first, self.head, self.error = nn.Conv2d(3, 4, 3), nn.Linear(4 * 6 * 6, 10), error

    def forward(self, images: Tensor) -> Tensor:
        maps = self.first(images)
        if not maps.is_contiguous():
            raise self.error
        return self.head(maps.flatten(1))


@pytest.mark.parametrize(
    "error", [RuntimeError("view size is not compatible"), AssertionError(), ValueError("strides")]
)
def test_a_network_that_cannot_do_with_channels_last_stays_contiguous(error: Exception) -> None:
    classifier = as_classifier(Particular(error), shape=(3, 8, 8))
    classifier.to_fast_layout(torch.device("cpu"))
    assert classifier.layout == torch.contiguous_format
    assert classifier(classifier.example_pixels(2)).shape == (2, 10)
