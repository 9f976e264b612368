"""Engines that look at new requests only now and then."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.evidence import rng_for
from moesim.serving.engine import Engine, Hold
from moesim.serving.iterations import Exact
from moesim.serving.policies import routers
from moesim.serving.service import Change, InstanceSpec, Service
from moesim.serving.workload import Workload
from moesim.units import MS, PS_PER_S


@dataclass(frozen=True)
class Flat:
    """Every iteration takes 10 ms, and 1 ms more for each prompt token."""

    num_ranks: int = 1

    def seconds(self, shapes):
        return (10 * MS + MS * shapes.prefill_tokens.sum(axis=1)).astype(float)

    def overhead(self, shapes):
        return np.zeros(shapes.num_samples)


PLAIN = Engine(num_blocks=4000, max_num_batched_tokens=100, max_num_seqs=64)


def played(hold, arrivals, prompts, answers, *, clients=None, num_ranks=1, changes=()):
    engine = replace(PLAIN, hold=hold)
    workload = Workload.of(
        np.asarray(arrivals, dtype=float), np.asarray(prompts), np.asarray(answers), clients=clients
    )
    specs = [InstanceSpec(engine, Exact(Flat(num_ranks), engine), num_ranks)]
    return Service(workload, specs, routers.build("least_loaded"), changes=changes).run()


def first_tokens_s(measures):
    return np.asarray(measures.first_token_ps) / PS_PER_S


def test_an_idle_instance_looks_at_once():
    done = played(Hold(50), [0.0, 5.0], [10, 10], [5, 5])
    assert first_tokens_s(done) - [0.0, 5.0] == pytest.approx(0.02)


def test_a_polling_instance_looks_after_so_many_iterations_since_the_last_look():
    # the first prompt ends at 20 ms; decode steps of 10 ms follow, looked at before every eighth
    done = played(Hold(8), [0.0, 0.035, 0.135], [10, 10, 10], [60, 5, 5])
    first = first_tokens_s(done)
    assert first[1] == pytest.approx(0.02 + 8 * 0.01 + 0.02)
    # working on a prompt it looks again right after: the third is seen eight steps after that
    assert first[2] == pytest.approx(first[1] + 8 * 0.01 + 0.02)


def test_a_gathering_instance_counts_from_the_first_that_waits():
    done = played(Hold(8, gathers=True), [0.0, 0.045], [10, 10], [60, 5])
    assert first_tokens_s(done)[1] == pytest.approx(0.05 + 8 * 0.01 + 0.02)


def test_enough_prompt_tokens_end_the_wait():
    def last(fill):
        hold = Hold(40, gathers=True, fill=fill)
        return first_tokens_s(played(hold, [0.0, 0.045, 0.055], [10, 50, 45], [90, 5, 5]))

    assert last(0.9)[1:] == pytest.approx(0.06 + 0.01 + 0.095)  # both in one iteration
    assert last(1.5)[1] == pytest.approx(0.05 + 0.4 + 0.01 + 0.095)


def test_requests_that_were_held_are_not_lost_with_their_instance():
    changes = (Change(0.08, "down", 0), Change(0.1, "up", 0))
    done = played(Hold(30), [0.0, 0.05], [10, 10], [40, 5], changes=changes)
    assert (np.asarray(done.finish_ps) > 0).all()
    assert sum(done.retries) == 2


@settings(max_examples=25)
@given(st.integers(1, 40), st.booleans(), st.integers(2, 12), st.integers(1, 3), st.integers(0, 2**16))
def test_every_request_ends_and_waits_no_longer_than_the_interval(every, gathers, clients, ranks, seed):
    rng = rng_for(seed, "holding")
    count = 6 * clients
    prompts, answers = rng.integers(1, 40, count), rng.integers(2, 30, count)
    held = played(Hold(every, gathers), np.zeros(count), prompts, answers, clients=clients, num_ranks=ranks)
    assert held.output_tokens == answers.sum()
    assert (np.asarray(held.finish_ps) > 0).all()
    if every == 1:
        plain = played(None, np.zeros(count), prompts, answers, clients=clients, num_ranks=ranks)
        if not gathers:
            assert held.finish_ps == plain.finish_ps
