"""Traffic counted by arrays equals traffic counted token by token, exactly."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.network.traffic import routed_traffic


@st.composite
def routed(draw):
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    domain = np.repeat(np.arange(len(sizes)) * 3 + 1, sizes)
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    tokens, layers, choices = draw(st.integers(1, 12)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    source = rng.integers(0, len(domain), tokens)
    destination = rng.integers(-1, len(domain), (tokens, layers, choices))
    return source, destination, domain


def brute_force(source, destination, domain, deduplicate):
    ranks = len(domain)
    shape = (destination.shape[1], ranks, ranks)
    up, out = np.zeros(shape), np.zeros(shape)
    for t, origin in enumerate(source):
        for layer in range(destination.shape[1]):
            wanted = [int(d) for d in destination[t, layer] if d >= 0]
            if deduplicate != "expert":
                wanted = sorted(set(wanted))
            forwarded = set()
            for d in wanted:
                if domain[d] == domain[origin]:
                    up[layer, origin, d] += d != origin
                    continue
                if deduplicate != "node":
                    out[layer, origin, d] += 1
                    continue
                members = [r for r in range(ranks) if domain[r] == domain[d]]
                own = [r for r in range(ranks) if domain[r] == domain[origin]]
                rail = members[own.index(int(origin)) % len(members)]
                if domain[d] not in forwarded:
                    out[layer, origin, rail] += 1
                    forwarded.add(domain[d])
                up[layer, rail, d] += rail != d
    return up, out


@settings(max_examples=60)
@given(routed(), st.sampled_from(["expert", "rank", "node"]))
def test_traffic_equals_brute_force(case, deduplicate):
    source, destination, domain = case
    traffic = routed_traffic(source, destination, domain, deduplicate)
    up, out = brute_force(source, destination, domain, deduplicate)
    np.testing.assert_array_equal(traffic.scale_up, up)
    np.testing.assert_array_equal(traffic.scale_out, out)


@settings(max_examples=40)
@given(routed())
def test_deduplication_never_adds_bytes_between_nodes(case):
    source, destination, domain = case
    crossing = [
        routed_traffic(source, destination, domain, d).scale_out.sum() for d in ("expert", "rank", "node")
    ]
    assert crossing[0] >= crossing[1] >= crossing[2]


@settings(max_examples=40)
@given(routed(), st.sampled_from(["expert", "rank", "node"]))
def test_what_is_sent_is_received_and_comes_back(case, deduplicate):
    source, destination, domain = case
    traffic = routed_traffic(source, destination, domain, deduplicate)
    ports = traffic.ports()
    assert ports.scale_up_out.sum() == ports.scale_up_in.sum()
    assert ports.scale_out_out.sum() == ports.scale_out_in.sum()
    back = traffic.transposed().ports()
    np.testing.assert_array_equal(back.scale_up_out, ports.transposed().scale_up_out)
    np.testing.assert_array_equal(back.scale_out_in, ports.transposed().scale_out_in)
