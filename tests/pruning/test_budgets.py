import itertools

import numpy as np
import pytest
from pydantic import ValidationError

from fsrp_edge.bench.address import parse_address
from fsrp_edge.bench.setup import Setup
from fsrp_edge.errors import BadInputError
from fsrp_edge.exporting.export import ArtifactRequest
from fsrp_edge.models.size import measure_size
from fsrp_edge.pipeline.budgeting import Workplace, costing, named_graph, plan_with_trials, settle
from fsrp_edge.pruning.allocation import Levels, allocate
from fsrp_edge.pruning.budgets import Budgets, parse_limit
from fsrp_edge.pruning.options import PlanOptions
from fsrp_edge.pruning.planning import least_network, make_plan, planning_of, require_feasible, tilted
from fsrp_edge.pruning.surgery import apply_plan
from fsrp_edge.targets.estimate import estimate
from fsrp_edge.targets.load import load_target
from tests.pruning.conftest import random_scores

PI = load_target("raspberry-pi-4")


@pytest.mark.parametrize(
    ("kind", "text", "amount", "of_dense"),
    [
        ("latency", "20ms", 20, False),
        ("latency", "1.5 s", 1500, False),
        ("latency", "50%", 0.5, True),
        ("macs", "0.3", 0.3, True),
        ("macs", "12M", 12e6, False),
        ("parameters", "60000", 60000, False),
        ("size", "500KB", 500e3, False),
        ("memory", "8MiB", 8 * 2**20, False),
    ],
)
def test_limits_are_read(kind, text, amount, of_dense):
    found = parse_limit(kind, text)
    assert found.amount == pytest.approx(amount) and found.of_dense == of_dense


@pytest.mark.parametrize(
    ("kind", "text"),
    [("latency", "20"), ("latency", "20MB"), ("size", "-1KB"), ("macs", "150%"), ("macs", "0"), ("memory", "much")],
)  # fmt: skip
def test_what_is_no_limit_is_refused(kind, text):
    with pytest.raises(ValidationError, match=r"unit|above 0"):
        Budgets.model_validate({kind: text})


def costs_of_a_chain(removed):
    """Layers whose work is the product of their inputs and outputs, as of three convolutions of 16 channels."""
    kept = 16 - removed
    work = 3 * kept[:, 0] + kept[:, 0] * kept[:, 1] * 2 + kept[:, 1] * kept[:, 2] + 40 * kept[:, 2]
    return {"latency": work.astype(float), "parameters": (kept[:, 0] * kept[:, 1]).astype(float)}


def test_the_allocation_is_within_two_percent_of_the_best_that_enumeration_finds():
    rng, gaps = np.random.default_rng(0), []
    for _ in range(30):
        shares = np.sort(rng.random((3, 8)), axis=1)[:, ::-1].cumsum(1)
        steps = np.arange(0, 15, 2)
        levels = [Levels(steps, -np.log((row / row[-1])[::-1]) * rng.uniform(0.5, 3)) for row in shares]
        limits = {"latency": rng.uniform(300, 1000), "parameters": rng.uniform(60, 250)}
        every = np.array(list(itertools.product(range(8), repeat=3)))
        figures = costs_of_a_chain(steps[every])
        fits = np.all([figures[kind] <= limit for kind, limit in limits.items()], axis=0)
        losses = sum(level.losses[every[:, index]] for index, level in enumerate(levels))
        removed = allocate(levels, costs_of_a_chain, limits)
        found = costs_of_a_chain(removed[None])
        assert all(found[kind][0] <= limit for kind, limit in limits.items())
        loss = sum(level.losses[gone // 2] for level, gone in zip(levels, removed, strict=True))
        gaps.append(loss / losses[fits].min() - 1)
    assert np.mean(gaps) < 0.02 and max(gaps) < 0.15


@pytest.fixture(scope="module")
def resnet(carried):
    return carried("cifar:resnet20-b")


@pytest.fixture(scope="module")
def costs(resnet):
    return costing(named_graph(resnet), PI, "fp32", ["litert"])


def plan(resnet, costs, allocation=None, **budgets):
    options = {"budgets": budgets, "channel_multiple": 8, "allocation": allocation}
    return make_plan(resnet, random_scores(resnet), PlanOptions.model_validate(options), costs)


@pytest.mark.parametrize("allocation", ["knapsack", "uniform", "global"])
def test_budgets_hold_together_on_the_network_that_the_plan_gives(resnet, costs, allocation):
    found = plan(resnet, costs, allocation, latency="75%", parameters="0.5", memory="900KB")
    pruned = apply_plan(resnet, found)
    limits = {each.kind: each.limit for each in found.budgets}
    bases = {each.kind: each.basis for each in found.budgets}
    assert (bases["parameters"], bases["memory"]) == ("counted", "reckoned in fp32")
    assert bases["latency"].startswith("estimated for litert, 4 threads, fp32: 35 published measurements")
    after = estimate(named_graph(pruned), PI)
    assert after.milliseconds <= limits["latency"]
    assert measure_size(pruned).parameters <= limits["parameters"]
    assert after.weight_bytes + after.arena_bytes <= limits["memory"]
    assert {each.kind: each.planned for each in found.budgets}["latency"] == pytest.approx(after.milliseconds)
    assert all(len(group.kept) % 8 == 0 for group in found.groups if len(group.kept) < group.channels)


def test_the_knapsack_uses_more_of_a_budget_than_a_common_ratio_can(resnet, costs):
    (allocated,), (uniform,) = (plan(resnet, costs, how, latency="60%").budgets for how in ("knapsack", "uniform"))
    assert uniform.planned <= allocated.planned <= allocated.limit
    assert allocated.planned > 0.98 * allocated.limit


@pytest.mark.parametrize("tilt", [-0.75, -0.5, 0.5, 0.75])
def test_tilted_ratios_meet_the_budget_and_keep_more_at_one_end(resnet, costs, tilt):
    wanted = PlanOptions.model_validate({"budgets": {"latency": "50%"}, "channel_multiple": 2})
    planning = planning_of(resnet, random_scores(resnet), wanted, costs)
    shares = {
        each: np.array(tilted(planning, each)) / [c.group.channels for c in planning.candidates] for each in (0.0, tilt)
    }
    (budget,) = planning.plan(tilted(planning, tilt)).budgets
    assert budget.planned <= budget.limit
    first, last = (
        [place for place, c in enumerate(planning.candidates) if c.group.root.startswith(stage) and not c.reason]
        for stage in ("layer1", "layer3")
    )
    kept_more, kept_less = (first, last) if tilt > 0 else (last, first)
    assert shares[tilt][kept_more].mean() > shares[0.0][kept_more].mean()
    assert shares[tilt][kept_less].mean() < shares[0.0][kept_less].mean()


def test_a_ratio_of_macs_can_be_allocated_too(resnet):
    options = PlanOptions(ratio=0.5, ratio_of="macs", allocation="knapsack")
    pruned = apply_plan(resnet, make_plan(resnet, random_scores(resnet), options))
    assert 0.47 <= measure_size(pruned).macs / measure_size(resnet).macs <= 0.5


def test_what_cannot_be_reached_is_told_with_the_least_before_anything_is_scored(resnet, costs):
    options = PlanOptions(budgets=Budgets.model_validate({"latency": "5%"}), channel_multiple=8)
    with pytest.raises(BadInputError, match=r"cannot be reached: .* ms of .* ms is the least .*litert"):
        require_feasible(resnet, options, costs)


def test_budgets_that_the_dense_network_meets_are_told(resnet, costs):
    with pytest.raises(BadInputError, match=r"nothing has to be removed, .* within its budgets: latency"):
        plan(resnet, costs, latency="1000ms")


def test_latency_without_a_device_and_a_knapsack_without_a_cost_are_refused(resnet):
    with pytest.raises(BadInputError, match=r"--latency needs a device.*--target"):
        plan(resnet, None, latency="20ms")
    with pytest.raises(BadInputError, match=r"needs something that costs"):
        plan(resnet, None, "knapsack")


def test_locked_groups_stay_whole_under_budgets(resnet, costs):
    options = PlanOptions.model_validate(
        {"budgets": {"latency": "70%"}, "channel_multiple": 8, "keep": ["layer3.*"], "keep_first": True}
    )
    found = make_plan(resnet, random_scores(resnet), options, costs)
    for group in found.groups:
        if group.root.startswith("layer3") or group.root == "conv1":
            assert len(group.kept) == group.channels, group.root


@pytest.mark.parametrize(
    ("target", "device", "runtime"),
    [
        ("jetson-nano", "ssh://nano", "tensorrt"),
        ("jetson-nano", "local", "onnxruntime"),
        ("raspberry-pi-4", "ssh://pi", "onnxruntime"),
    ],
)
def test_files_are_timed_in_the_runtime_that_the_device_is_for(target, device, runtime):
    requests = tuple(ArtifactRequest(name, "fp32") for name in ("onnx", "tflite"))
    place = Workplace(load_target(target), requests, parse_address(device), 1, images=None)
    assert place.runtimes == {"onnx": runtime, "tflite": "litert"}
    assert place.measured == (device != "local")


def test_preferred_runtimes_take_the_files_that_they_run(tmp_path):
    for name in ("a.onnx", "a.tflite"):
        (tmp_path / name).touch()
    setup = Setup(preferred=("tensorrt",))
    assert [setup.runtime_of(tmp_path / name) for name in ("a.onnx", "a.tflite")] == ["tensorrt", "litert"]


@pytest.mark.parametrize("share", ["75%", "40%", "15%"])
def test_trials_find_a_plan_close_to_a_budget_on_a_device_that_is_not_as_reckoned(resnet, monkeypatch, share):
    place = Workplace(
        load_target("generic-x86"), (ArtifactRequest("onnx", "fp32"),), parse_address("local"), 1, images=None
    )

    def measured(_, network, kinds):  # it starts operators faster than any published device, and is slow at MACs
        return {"latency": 0.02 + 1e-6 * measure_size(network).macs}

    monkeypatch.setattr(Workplace, "try_files", measured)
    wanted = PlanOptions(channel_multiple=8)
    costs = place.costing(resnet, absolute=False)
    ends = (place.try_network(each, costs, ("latency",)) for each in (resnet, least_network(resnet, wanted)))
    costs, budgets = settle(place, costs, *ends, Budgets.model_validate({"latency": share}))
    wanted = wanted.model_copy(update={"budgets": budgets})

    def make(options, reckoned):
        return make_plan(resnet, random_scores(resnet), options, reckoned)

    found = make(wanted, plan_with_trials(place, costs, resnet, wanted, make))
    limit = float(share.removesuffix("%")) / 100 * measured(None, resnet, ())["latency"]
    assert found.budgets[0].limit == pytest.approx(limit)
    assert 0.9 * limit <= measured(None, apply_plan(resnet, found), ())["latency"] <= limit


def test_a_trial_far_below_its_limit_is_better_than_one_just_above(resnet, monkeypatch):
    place = Workplace(load_target("generic-x86"), (ArtifactRequest("onnx", "fp32"),), parse_address("local"), 1, None)
    wanted = PlanOptions(channel_multiple=8, budgets=Budgets.model_validate({"size": "500KB"}))
    found = iter([1.1e6, 2e4, 300e3, 510e3, 510e3, 510e3])  # of the dense network, the least one, then of plans
    monkeypatch.setattr(Workplace, "try_files", lambda *_: {"size": next(found)})
    costs = place.costing(resnet, absolute=False)
    ends = (place.try_network(each, costs, ("size",)) for each in (resnet, least_network(resnet, wanted)))
    costs, _ = settle(place, costs, *ends, wanted.budgets)

    def make(options, reckoned):
        return make_plan(resnet, random_scores(resnet), options, reckoned)

    assert plan_with_trials(place, costs, resnet, wanted, make) is costs
