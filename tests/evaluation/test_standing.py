import pytest
import torch
from torch import Tensor

from fsrp_edge import distributed
from fsrp_edge.errors import BadInputError
from fsrp_edge.evaluation import evaluate as evaluation
from fsrp_edge.evaluation.evaluate import EvaluationPlan, evaluate
from fsrp_edge.evaluation.standing import Verdicts, attack_standing, discard_verdicts
from fsrp_edge.models.classifier import Classifier

PLAN = EvaluationPlan(attacks=("pgd-4x2", "cw-3", "autoattack"), eps=0.2, seed=2, batch_size=5)


class KilledError(Exception):
    pass


def test_an_interrupted_evaluation_goes_on_to_the_same_verdicts(trained, tmp_path, monkeypatch) -> None:
    images, path = trained.images.first(14), tmp_path / "unfinished.json"
    whole = evaluate(trained.robust, images, PLAN)
    written, add = [], Verdicts.add

    def killed_after(limit: int):
        def counting(self, *arguments) -> None:
            add(self, *arguments)
            if self.path:  # the search for masked gradients keeps none
                written.append(arguments[0])
            if len(written) >= limit:
                raise KilledError

        return counting

    for limit in (2, 5, 8):
        monkeypatch.setattr(Verdicts, "add", killed_after(limit))
        with pytest.raises(KilledError):
            evaluate(trained.robust, images, PLAN, unfinished=path)
        assert path.exists()
    monkeypatch.setattr(Verdicts, "add", killed_after(10**6))
    resumed = evaluate(trained.robust, images, PLAN, unfinished=path)
    assert [one.result for one in resumed] == [one.result for one in whole]
    assert all(torch.equal(one.standing, other.standing) for one, other in zip(resumed, whole, strict=True))
    batches = len(written)
    evaluate(trained.robust, images, PLAN, unfinished=path)
    assert len(written) == batches, "what is known is not attacked again"
    discard_verdicts(path)
    assert not path.exists()
    evaluate(trained.robust, images, PLAN, unfinished=path)
    assert len(written) - batches == batches, "every batch was attacked once, whatever the interruptions"


def test_what_another_number_of_processes_left_is_not_read_and_goes_with_the_rest(tmp_path) -> None:
    path, others = tmp_path / "net [1].unfinished.json", [tmp_path / f"net [1].unfinished.{n}of2.json" for n in (1, 2)]
    foreign = tmp_path / "net [1].unfinished.copyof2.json"
    for left in (*others, foreign):
        left.write_text("{}")
    Verdicts(path, {"processes": 1}).add("pgd", torch.tensor([0]), torch.tensor([True]), 1)
    assert path.exists()
    discard_verdicts(path)
    assert list(tmp_path.iterdir()) == [foreign]


@pytest.mark.parametrize("left_by_all", [True, False])
def test_an_evaluation_goes_on_with_its_batch_size_whatever_fits_into_memory_now(
    trained, tmp_path, monkeypatch, left_by_all: bool
) -> None:
    images, path = trained.images.first(14), tmp_path / "unfinished.json"
    plan = EvaluationPlan(attacks=("pgd-2",), eps=0.2)
    monkeypatch.setattr(evaluation, "default_batch_size", lambda *_: 5)
    evaluate(trained.robust, images, plan, unfinished=path)
    monkeypatch.setattr(evaluation, "default_batch_size", lambda *_: 3)
    with pytest.raises(BadInputError, match="another evaluation"):
        evaluate(trained.robust, images, plan.model_copy(update={"batch_size": 3}), unfinished=path)
    if not left_by_all:  # the other process was killed before it wrote
        path.unlink()
        monkeypatch.setattr(distributed, "numbers_of_processes", lambda number: [number, number or 5])
    sizes, add = [], Verdicts.add

    def noted(self, name: str, positions: Tensor, *rest) -> None:
        if self.path:  # the search for masked gradients keeps none
            sizes.append(len(positions))
        add(self, name, positions, *rest)

    monkeypatch.setattr(Verdicts, "add", noted)
    evaluate(trained.robust, images, plan, unfinished=path)
    assert sizes[:2] == ([] if left_by_all else [5, 5])


def test_verdicts_of_another_evaluation_are_refused(trained, tmp_path) -> None:
    path = tmp_path / "unfinished.json"
    Verdicts(path, {"eps": 1}).add("pgd", torch.tensor([0]), torch.tensor([True]), 2)
    assert Verdicts(path, {"eps": 1}).of("pgd", torch.tensor([0])).tolist() == [True]
    assert Verdicts(path, {"eps": 1}).of("pgd", torch.tensor([0, 1])) is None
    with pytest.raises(BadInputError, match="another evaluation; delete it"):
        Verdicts(path, {"eps": 2})
    with pytest.raises(BadInputError, match="another evaluation"):
        evaluate(trained.robust, trained.images.first(3), PLAN, unfinished=path)


def test_verdicts_of_these_weights_behind_another_normalization_are_refused(trained, tmp_path) -> None:
    images, path = trained.images.first(6), tmp_path / "unfinished.json"
    evaluate(trained.robust, images, PLAN, unfinished=path)
    spec = trained.robust.spec
    other = Classifier(trained.robust.network, spec.model_copy(update={"std": tuple(2 * std for std in spec.std)}))
    with pytest.raises(BadInputError, match="another evaluation"):
        evaluate(other, images, PLAN, unfinished=path)


def test_corruptions_go_on_where_they_stopped(trained, tmp_path, monkeypatch) -> None:
    images, path = trained.images.first(4), tmp_path / "unfinished.json"
    plan = EvaluationPlan(corruptions=True, batch_size=4)
    add = Verdicts.add

    def killed(self, name: str, *arguments) -> None:
        add(self, name, *arguments)
        if name == "fog":
            raise KilledError

    monkeypatch.setattr(Verdicts, "add", killed)
    with pytest.raises(KilledError):
        evaluate(trained.robust, images, plan, unfinished=path)
    written: list[str] = []
    monkeypatch.setattr(Verdicts, "add", lambda self, name, *rest: (written.append(name), add(self, name, *rest)))
    resumed = evaluate(trained.robust, images, plan, unfinished=path)
    assert "fog" not in written and "gaussian noise" not in written and "jpeg" in written
    assert [one.result for one in resumed] == [one.result for one in evaluate(trained.robust, images, plan)]


def test_processes_share_whole_batches(trained, monkeypatch) -> None:
    images, standing = trained.images.first(23), torch.arange(23) % 4 != 0
    seen: list[list[int]] = []

    def withstands(pixels: Tensor, labels: Tensor, positions: Tensor) -> Tensor:
        assert torch.equal(labels, images.labels[positions])
        seen.append(positions.tolist())
        return positions % 3 != 0

    def run(rank: int, size: int) -> Tensor:
        monkeypatch.setattr(distributed, "processes", lambda: (rank, size))
        monkeypatch.setattr(distributed, "sum_over_processes", lambda tensor: tensor)
        return attack_standing(images, standing, withstands, name="any", batch_size=4)

    alone, batches = run(0, 1), seen[:]
    seen.clear()
    parts = [run(rank, 3) for rank in range(3)]
    assert seen == batches
    assert torch.equal(torch.stack(parts).all(0), alone)
    assert torch.equal(alone, standing & (torch.arange(23) % 3 != 0))
