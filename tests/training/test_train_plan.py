"""Groups of a training plan: attention's and the experts' views of the same ranks."""

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.model.load import load
from moesim.parallel.train_plan import TrainPlan, check


def test_groups_before_folding_run_over_data_parallel_ranks():
    plan = TrainPlan(tp=2, cp=2, dp=4, ep=2, etp=2, folded=False)
    assert plan.ep_ranks().tolist() == [0, 4]
    assert plan.edp_ranks().tolist() == [0, 2, 8, 10]
    assert plan.dp_ranks().tolist() == [0, 2, 4, 6, 8, 10, 12, 14]


def test_folded_groups_are_dense():
    plan = TrainPlan(tp=2, cp=2, dp=4, ep=8, etp=1)
    assert plan.ep_ranks().tolist() == list(range(8))
    assert plan.edp_ranks().tolist() == [0, 8]


@pytest.mark.parametrize("folded", [True, False])
def test_expert_replicas_and_experts_make_up_the_stage(folded):
    plan = TrainPlan(tp=2, cp=2, dp=8, ep=4, etp=2, folded=folded)
    etp = plan.etp_ranks()
    ranks = plan.edp_ranks()[:, None, None] + plan.ep_ranks()[:, None] + etp
    assert sorted(ranks.ravel().tolist()) == list(range(plan.stage_size))
    assert np.unique(plan.dp_ranks()).size == plan.dp * plan.cp


def test_every_contradiction_is_named_at_once():
    model = load("qwen3_30b_a3b")
    with pytest.raises(InputError) as error:
        check(TrainPlan(tp=3, dp=4, pp=8, vpp=7, ep=256), model, 64)
    text = str(error.value)
    assert all(field in text for field in ("plan.tp", "plan.vpp", "plan.ep", "accepted"))
