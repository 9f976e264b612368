import pytest

from moesim.engine.agenda import Agenda


def test_phases_of_an_instant_come_in_order_whoever_asked_first():
    agenda, seen = Agenda(), []

    def tell(event):
        seen.append((agenda.now_ps, event.value))

    agenda.call(tell, delay_ps=5, phase=2, value="last")
    agenda.call(tell, delay_ps=5, phase=0, value="first")
    agenda.call(tell, delay_ps=3, phase=2, value="before")
    # asked for during the instant, and yet before its last phase
    agenda.call(lambda _: agenda.call(tell, phase=1, value="between"), delay_ps=5, phase=0)
    agenda.run()
    assert seen == [(3, "before"), (5, "first"), (5, "between"), (5, "last")]
    assert agenda.num_events == 5


def test_there_is_no_past():
    with pytest.raises(ValueError, match="-1 ps"):
        Agenda().call(print, delay_ps=-1)
