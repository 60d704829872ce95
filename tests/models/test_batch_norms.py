from torch import nn

from fsrp_edge.models.batch_norms import batch_norms_behind
from tests.nets import as_classifier, built


def test_each_layer_of_a_residual_network_has_its_own():
    found = batch_norms_behind(built("cifar:resnet20-a"))
    assert (found["conv1"], found["layer2.1.conv2"]) == ("bn1", "layer2.1.bn2")
    assert len(found) == 19 and "linear" not in found


def test_only_those_right_behind_a_layer_with_statistics():
    body = nn.Sequential(
        nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4),
        nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5, track_running_stats=False), nn.Flatten(), nn.Linear(5 * 4, 4),
    )  # fmt: skip
    assert batch_norms_behind(as_classifier(body, shape=(3, 2, 2), classes=4)) == {}


def test_what_is_used_twice_belongs_to_nobody():
    norm, layer = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)
    for body in (
        nn.Sequential(layer, norm, nn.Conv2d(3, 3, 1), norm),
        nn.Sequential(layer, nn.BatchNorm2d(3), layer, nn.BatchNorm2d(3)),
    ):
        found = batch_norms_behind(
            as_classifier(nn.Sequential(body, nn.Flatten(), nn.Linear(12, 4)), shape=(3, 2, 2), classes=4)
        )
        assert found == {}


class CalledByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 4)

    def forward(self, images):
        return self.linear(input=self.norm(input=self.conv(input=images)).mean((2, 3)))


def test_what_is_called_by_name_is_seen():
    assert batch_norms_behind(as_classifier(CalledByName(), shape=(3, 2, 2), classes=4)) == {"conv": "norm"}


class PreActivation(nn.Module):
    """What a residual network is whose batch norms stand before the convolutions, as common code writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.bn1, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.last = nn.BatchNorm2d(4)

    def forward(self, images):
        maps = self.stem(images)
        out = self.conv1(self.bn1(maps).relu())
        out = self.conv2(self.bn2(out).relu())
        out += maps
        return self.last(out).mean((2, 3))


def test_what_a_shortcut_reads_too_or_changes_in_place_belongs_to_nobody():
    found = batch_norms_behind(as_classifier(PreActivation(), shape=(3, 2, 2), classes=4))
    assert found == {"conv1": "bn2"}
    body = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Hardswish(inplace=True), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 4)
    )
    assert batch_norms_behind(as_classifier(body, shape=(3, 2, 2), classes=4)) == {}
