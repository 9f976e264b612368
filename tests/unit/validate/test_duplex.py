"""Duplex beside the processor alone: what must hold whatever the published numbers are."""

from dataclasses import replace

import pytest

from moesim.validate.claims import published
from moesim.validate.offload_sets import duplex

GIVEN = published("offload").data["duplex"]
MIXTRAL, GLAM, GROK = GIVEN["models"]


def test_an_all_reduce_pays_twice_for_every_hop() -> None:
    free = {**GIVEN, "link_bytes_per_s": float("inf")}
    hops = {
        model["name"]: duplex._all_reduce_s(free, model, 64) / GIVEN["hop_s"] for model in (MIXTRAL, GLAM)
    }
    assert hops == pytest.approx({"Mixtral": 2 * 3, "GLaM": 2 * 7})


def test_nodes_share_tokens_but_not_the_ring() -> None:
    one_node = {**GROK, "devices": GIVEN["node_devices"]}
    assert duplex._all_reduce_s(GIVEN, GROK, 64) == pytest.approx(duplex._all_reduce_s(GIVEN, one_node, 32))


def test_what_does_not_fit_is_left_out() -> None:
    assert duplex._fits(GLAM, 4096, 64)
    assert not duplex._fits(GLAM, 4096, 128)
    assert duplex._fits({**GLAM, "devices": 2 * GLAM["devices"]}, 4096, 128)


def test_working_together_is_never_slower() -> None:
    def step_s(*, together: bool, prompt: int) -> float:
        near = duplex._engine(GIVEN, "duplex_logic_pim", "duplex_logic_pim")
        both = duplex._Device(duplex._engine(GIVEN, "duplex_xpu", "xpu"), near, together=together, seed=0)
        alone = replace(both, near=None)
        assert (
            duplex._step(GIVEN, MIXTRAL, 32, 512, prompt, both)[0]
            <= (duplex._step(GIVEN, MIXTRAL, 32, 512, prompt, alone)[0])
        )
        return duplex._step(GIVEN, MIXTRAL, 32, 512, prompt, both)[0]

    for prompt in (0, 512):
        assert step_s(together=True, prompt=prompt) <= step_s(together=False, prompt=prompt)


def test_a_step_with_a_prompt_takes_longer_but_less_than_two_steps_apart() -> None:
    device = duplex._Device(duplex._engine(GIVEN, "duplex_xpu", "xpu"), None, together=True, seed=0)
    plain, mixed = (duplex._step(GIVEN, MIXTRAL, 32, 512, prompt, device)[0] for prompt in (0, 512))
    weights_once_more = duplex._step(GIVEN, MIXTRAL, 1, 1, 512, device)[0]
    assert plain < mixed < plain + weights_once_more
