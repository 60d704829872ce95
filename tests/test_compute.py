import torch

from fsrp_edge import compute


def test_draws_inside_do_not_move_those_outside_on_a_machine_with_several_gpus(recwarn, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    before = torch.get_rng_state()
    with compute.own_draws():
        torch.manual_seed(1)
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    assert not recwarn.list
