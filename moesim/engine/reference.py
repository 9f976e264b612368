"""A list scheduler over the dependency graph, in plain Python: the oracle for both interpreters.

Written from the semantics in :mod:`moesim.engine.program` and shares no algorithm with the interpreters.
Quadratic; for tests and small programs only.
"""

from __future__ import annotations

from moesim.engine.program import Meet, Program, Receive, Run, Send, Wait, participants

Task = tuple[int, int]


def dependencies(program: Program) -> dict[Task, set[Task]]:
    """For every (instruction, rank) that takes part: the ones that must have ended before it starts."""
    needs: dict[Task, set[Task]] = {}
    last: dict[tuple[str, int], Task] = {}
    mail: dict[tuple[int, int], list[Task]] = {}
    for index, what in enumerate(program.instructions):
        ranks = [r for r in range(program.num_ranks) if participants(what, program.num_ranks)[r]]
        before = {r: {last[what.stream, r]} if (what.stream, r) in last else set() for r in ranks}
        for rank in ranks:
            needs[index, rank] = set(before[rank])
            if isinstance(what, Meet):
                needs[index, rank].update(*(before[r] for r in ranks if what.group[r] == what.group[rank]))
            elif isinstance(what, Send):
                mail.setdefault((rank, int(what.to[rank])), []).append((index, rank))
            elif isinstance(what, Receive):
                needs[index, rank].add(mail[int(what.sender[rank]), rank].pop(0))
            elif isinstance(what, Wait) and (what.on, rank) in last:
                needs[index, rank].add(last[what.on, rank])
        last.update({(what.stream, rank): (index, rank) for rank in ranks})
    return needs


def schedule(program: Program, duration_ps: list[list[int]]) -> dict[Task, tuple[int, int]]:
    """Start and end of every (instruction, rank), time step by time step. [ps]

    Parameters
    ----------
    program : Program
        A valid program; may share resources.
    duration_ps : list of list of int, ``[instruction][rank]``
        Durations. [ps]
    """
    needs = dependencies(program)
    waiting = sorted(needs)
    done: dict[Task, tuple[int, int]] = {}
    queues: dict[tuple[str, int], list[tuple[int, int, int]]] = {}
    free_at: dict[tuple[str, int], int] = {}
    now = 0

    def start(task: Task) -> int:
        takes_time = not isinstance(program.instructions[task[0]], Receive | Wait)
        done[task] = (now, now + (duration_ps[task[0]][task[1]] if takes_time else 0))
        return done[task][1]

    while waiting or any(queues.values()):
        ready = [t for t in waiting if all(n in done and done[n][1] <= now for n in needs[t])]
        waiting = [t for t in waiting if t not in ready]
        for index, rank in ready:
            what = program.instructions[index]
            unit = int(what.resource.index[rank]) if isinstance(what, Run) and what.resource else -1
            if isinstance(what, Run) and what.resource and unit >= 0:
                queues.setdefault((what.resource.name, unit), []).append((now, rank, index))
            else:
                start((index, rank))
        if ready:
            continue
        granted = [key for key, queue in queues.items() if queue and free_at.get(key, 0) <= now]
        for key in granted:
            first = min(queues[key])
            queues[key].remove(first)
            free_at[key] = start((first[2], first[1]))
        if not granted:
            now = min(end for _, end in done.values() if end > now)
    return done
