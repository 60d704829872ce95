import numpy as np
import pytest

from fsrp_edge.models.channel_graph import PruningGraph
from fsrp_edge.pipeline.budgeting import named_graph
from fsrp_edge.pruning.counting import SizeCounter
from fsrp_edge.pruning.options import PlanOptions
from fsrp_edge.pruning.planning import make_plan
from fsrp_edge.pruning.surgery import apply_plan
from fsrp_edge.targets.elastic import ElasticGraph
from fsrp_edge.targets.work import Work, quantities
from tests.nets import as_classifier
from tests.pruning.conftest import random_scores
from tests.targets.nets import NETWORKS


@pytest.mark.parametrize("name", NETWORKS)
def test_fewer_channels_cost_what_the_pruned_networks_own_graph_costs(name: str) -> None:
    dense = as_classifier(NETWORKS[name](), f"tests.targets.nets:{NETWORKS[name].__name__}")
    groups = PruningGraph(dense).groups()
    plan = make_plan(dense, random_scores(dense), PlanOptions(ratio=0.4, channel_multiple=2))
    removed = np.array([[group.channels - len(group.kept) for group in plan.groups]])
    shares = SizeCounter(dense, groups).output_shares()
    work, parameters, peak = ElasticGraph(named_graph(dense), shares, len(groups)).cost(removed)
    pruned = named_graph(apply_plan(dense, plan))
    expected = quantities(Work.of(pruned.operators), "fp32")
    np.testing.assert_allclose(quantities(work, "fp32")[0], expected, rtol=1e-9)
    assert parameters[0] == pytest.approx(pruned.parameters)
    assert peak[0] == pytest.approx(pruned.peak_elements)
