"""The scheduler under a simulated engine, whose clock is the number of steps."""

from __future__ import annotations

import random
import time
from itertools import pairwise

import pytest

from llamahome.engine import QueueFullError, scheduler
from llamahome.engine.pace import LONGEST_PAUSE
from llamahome.engine.scheduler import OVERTAKEN, Batch
from tests.engine.simulation import CPU, FREE, INTERVAL, Cost, Simulation, counts, slot_of


def test_an_empty_scheduler_gives_no_batch() -> None:
    assert Simulation().step() is None


def test_a_step_is_one_batch_of_decoders_and_chunks_by_slot() -> None:
    sim = Simulation(prefill_tokens=40)
    for name in ("a", "b"):
        sim.add(name, prompt=100)
    sim.step()  # measures one chunk
    sim.step()  # and two: they cost nothing more
    sim.add("decoder", prompt=1, max_tokens=9)
    sim.step()
    batch = sim.step()
    assert batch is not None
    assert counts(batch) == {"a": 16, "b": 16, "decoder": 1}
    assert [request.slot for request in batch.requests] == [0, 1, 2]
    assert batch.decoding == 1


@pytest.mark.parametrize("prefill_tokens", [1, 16, 20, 1000])
def test_decoders_get_a_token_every_step_and_prompts_no_more_than_the_limit(
    prefill_tokens: int,
) -> None:
    sim = Simulation(slots=6, prefill_tokens=prefill_tokens)
    for i in range(3):
        sim.add(f"decoder{i}", prompt=1, max_tokens=10_000)
    sim.step()
    for i in range(3):
        sim.add(f"long{i}", prompt=500)
    while len(sim.finished) < 3:
        # A prompt's last token gives the first of the answer: it is decoded.
        prefilling = [r.request_id for r in sim.scheduler.running.values() if r.prefilling]
        step = counts(sim.step())
        assert [step[f"decoder{i}"] for i in range(3)] == [1, 1, 1]
        assert sum(step.get(name, 0) for name in prefilling) <= prefill_tokens


def test_chunks_end_where_the_chunks_of_the_slot_do() -> None:
    sim = Simulation(slots=1, prefill_tokens=10)
    sim.add("long", prompt=40)
    taken = [counts(sim.step())["long"] for _ in range(5)]
    assert taken == [10, 6, 10, 6, 8]


def test_chunks_are_whole_whatever_else_a_step_holds() -> None:
    sim = Simulation(slots=4, prefill_tokens=40)
    for name in ("a", "b", "c"):
        sim.add(name, prompt=100)
    sim.add("decoder", prompt=1, max_tokens=100)
    pieces: dict[str, list[int]] = {}
    while len(sim.finished) < 3:
        for name, count in counts(sim.step()).items():
            pieces.setdefault(name, []).append(count)
    assert {name: pieces[name] for name in ("a", "b", "c")} == dict.fromkeys(
        ("a", "b", "c"), [16] * 6 + [4]
    )


def test_prompts_of_one_length_are_read_one_after_another() -> None:
    sim = Simulation(slots=3, cost=CPU)
    for name in ("a", "b", "c"):
        sim.add(name, prompt=100 * INTERVAL)
    sim.drain()
    order = sorted(sim.first_token, key=lambda name: sim.first_token[name])
    assert order == ["a", "b", "c"]
    a, b, c = (sim.first_token[name] for name in order)
    assert b == pytest.approx(2 * a, rel=0.1)
    assert c == pytest.approx(3 * a, rel=0.1)


def test_the_shortest_prompt_is_read_first() -> None:
    sim = Simulation(slots=3, cost=CPU)
    for name, chunks in (("long", 30), ("middle", 20), ("short", 10)):
        sim.add(name, prompt=chunks * INTERVAL)
    sim.drain()
    assert sorted(sim.first_token, key=lambda name: sim.first_token[name]) == [
        "short", "middle", "long"
    ]  # fmt: skip


def test_a_half_read_prompt_goes_before_one_with_more_left() -> None:
    sim = Simulation(slots=2, cost=CPU)
    sim.add("first", prompt=30 * INTERVAL)
    for _ in range(20):
        sim.step()
    sim.add("second", prompt=15 * INTERVAL)
    sim.drain()
    assert sim.first_token["first"] < sim.first_token["second"]


def test_a_short_request_does_not_wait_for_the_long_ones_before_it() -> None:
    idle = Simulation(slots=4, cost=CPU)
    idle.add("short", prompt=3 * INTERVAL, max_tokens=50)
    idle.drain()
    sim = Simulation(slots=4, cost=CPU)
    for i in range(3):
        sim.add(f"long{i}", prompt=300 * INTERVAL)
    for _ in range(9):
        sim.step()
    arrived = sim.ms
    sim.add("short", prompt=3 * INTERVAL, max_tokens=50)
    while "short" not in sim.finished:
        sim.step()
    assert sim.first_token["short"] - arrived <= 2 * idle.first_token["short"]
    decoding = sim.finished["short"] - sim.first_token["short"]
    assert decoding <= 3 * (idle.finished["short"] - idle.first_token["short"])


@pytest.mark.parametrize("cost", [FREE, CPU])
def test_short_prompts_that_keep_coming_do_not_starve_a_long_one(cost: Cost) -> None:
    sim = Simulation(slots=4, cost=cost)
    sim.add("long", prompt=5 * INTERVAL)
    limit = OVERTAKEN * 5 * INTERVAL + 5 * INTERVAL
    for step in range(10_000):
        for i in range(4 - len(sim.scheduler.running) - len(sim.scheduler.waiting)):
            sim.add(f"short{step}-{i}", prompt=INTERVAL)
        sim.step()
        if "long" in sim.finished:
            break
    assert "long" in sim.finished
    assert sim.scheduler.read_tokens <= limit


def test_shortest_first_with_ageing_serves_both_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order is chosen by this: first come first served, ours, and without ageing."""
    waits = {}
    for overtaken in (0, OVERTAKEN, 10**9):
        monkeypatch.setattr(scheduler, "OVERTAKEN", overtaken)
        waits[overtaken] = mean_waits(seed=1)
    (short_fcfs, long_fcfs), (short, long), (short_first, _) = waits.values()
    assert short < short_fcfs / 5
    assert short < 1.5 * short_first
    assert long < 1.5 * long_fcfs


def mean_waits(seed: int) -> tuple[float, float]:
    """Return the mean milliseconds to the first token of short and long prompts at a high load."""
    drawn, sim, now = random.Random(seed), Simulation(16, cost=CPU), 0.0
    arrivals = []
    for number in range(300):
        now += drawn.expovariate(1 / 120)
        length = drawn.randint(600, 1500) if number % 10 == 0 else drawn.randint(10, 40)
        arrivals.append((now, f"{'long' if length > 40 else 'short'}{number}", length))
    for at, name, length in arrivals:
        while sim.ms < at and (sim.scheduler.running or sim.scheduler.waiting):
            sim.step()
        sim.ms = max(sim.ms, at)
        sim.add(name, prompt=length, max_tokens=8)
    sim.drain()
    waits = {name: sim.first_token[name] - at for at, name, _ in arrivals}
    kinds = ([waits[name] for name in waits if name.startswith(kind)] for kind in ("short", "long"))
    short, long = (sum(own) / len(own) for own in kinds)
    return short, long


def test_decoders_do_not_starve_a_prompt() -> None:
    sim = Simulation(slots=4, cost=Cost(step=4.0, row=40.0, token=50.0), slowdown=1.05)
    for i in range(3):
        sim.add(f"decoder{i}", prompt=1, max_tokens=100_000)
    sim.add("long", prompt=20 * INTERVAL)
    for _ in range(20 * (LONGEST_PAUSE + 1) + 2):
        sim.step()
    assert "long" in sim.finished


def test_a_full_step_is_worth_it_where_chunks_cost_nothing() -> None:
    sim = Simulation(slots=4, prefill_tokens=4 * INTERVAL, cost=FREE)
    for i in range(4):
        sim.add(str(i), prompt=100 * INTERVAL)
    sim.drain()
    assert sim.now <= 103  # 100 steps of four chunks, and one that measured a single chunk


def test_the_first_come_are_served_first_in_the_lowest_slots() -> None:
    sim = Simulation(slots=3)
    requests = [sim.add(str(i), prompt=1, max_tokens=3) for i in range(7)]
    sim.step()
    assert [request.slot for request in requests] == [0, 1, 2, None, None, None, None]
    sim.drain()
    assert sim.admitted == [str(i) for i in range(7)]


def test_a_slot_is_used_again_in_the_step_after() -> None:
    sim = Simulation(slots=1)
    for i in range(5):
        sim.add(str(i), prompt=1, max_tokens=2)
    sim.drain()
    assert sim.now == 10


def test_lower_priority_values_go_first() -> None:
    sim = Simulation(slots=1)
    for name, priority in (("a", 1), ("b", 0), ("c", -1), ("d", 0), ("e", -1), ("f", 1)):
        sim.add(name, priority=priority)
    sim.drain()
    assert sim.admitted == ["c", "e", "b", "d", "a", "f"]


def test_waiting_makes_up_for_a_priority() -> None:
    sim = Simulation(slots=1, ageing=50)
    sim.add("running", max_tokens=10_000)
    sim.step()
    sim.add("old", priority=1)
    for name, steps in (("soon", 40), ("late", 20)):
        for _ in range(steps):
            sim.step()
        sim.add(name, priority=0)
    sim.scheduler.remove(sim.scheduler.find("running"))
    sim.drain()
    assert sim.admitted == ["running", "soon", "old", "late"]


def test_urgent_requests_that_keep_coming_do_not_starve_the_others() -> None:
    sim = Simulation(slots=1, ageing=20)
    sim.add("patient", priority=5)
    for step in range(200):
        sim.add(f"urgent{step}", priority=0)
        sim.step()
        if "patient" in sim.admitted:
            break
    assert 90 <= sim.now <= 110  # 5 levels of 20 steps


def test_the_queue_is_limited_by_requests() -> None:
    sim = Simulation(slots=2, max_queued=3)
    for i in range(5):
        sim.add(str(i))  # two for the free slots, three to wait
    with pytest.raises(QueueFullError, match=r"engine\.max_queued=3"):
        sim.add("5")
    assert sim.scheduler.find("5") is None
    sim.step()
    sim.add("5")


def test_the_queue_is_limited_by_prompt_tokens() -> None:
    sim = Simulation(slots=1, max_queued_tokens=100)
    sim.add("running", prompt=5_000)  # goes to a free slot, so it is not refused
    sim.step()
    sim.add("huge", prompt=101)  # alone in the queue
    with pytest.raises(QueueFullError, match=r"1 more exceed engine\.max_queued_tokens=100"):
        sim.add("one", prompt=1)
    sim.scheduler.remove(sim.scheduler.find("huge"))
    sim.add("half", prompt=50)
    sim.add("other half", prompt=50)
    assert sim.scheduler.waiting_tokens == 100
    with pytest.raises(QueueFullError):
        sim.add("one", prompt=1)


def test_an_idle_engine_refuses_nothing_that_its_slots_take() -> None:
    sim = Simulation(slots=4, max_queued_tokens=1)
    for i in range(4):
        sim.add(str(i), prompt=1000)
    with pytest.raises(QueueFullError):
        sim.add("4", prompt=1000)


def test_a_cancelled_request_leaves_at_once_and_its_name_is_free() -> None:
    sim = Simulation(slots=1)
    running, waiting = sim.add("running", max_tokens=100), sim.add("waiting", priority=-1)
    sim.scheduler.remove(waiting)
    sim.add("waiting", prompt=3, priority=1)
    sim.step()
    sim.scheduler.remove(running)
    assert running.slot is None
    assert counts(sim.step()) == {"waiting": 3}
    assert sim.scheduler.find("running") is None


def test_cancelled_requests_are_not_kept_in_memory() -> None:
    sim = Simulation(slots=1)
    sim.add("running", max_tokens=10_000)
    sim.step()
    for i in range(1000):
        sim.scheduler.remove(sim.add(str(i)))
    assert len(sim.scheduler._queue) < 10


@pytest.mark.parametrize("seed", range(6))
def test_invariants_hold_under_a_random_load(seed: int) -> None:
    random_ = random.Random(seed)
    prefill_tokens = random_.choice([1, 7, 16, 40, 256])
    slots = random_.randint(1, 9)
    sim = Simulation(slots, prefill_tokens=prefill_tokens, max_queued=20, ageing=10)
    scheduler = sim.scheduler
    arrivals = 0
    for _ in range(1500):
        for _ in range(random_.choice([0, 0, 1, 2])):
            arrivals += 1
            try:
                sim.add(
                    str(arrivals),
                    prompt=random_.choice([1, 2, 16, 17, random_.randint(1, 300)]),
                    max_tokens=random_.randint(1, 30),
                    priority=random_.randint(-2, 2),
                )
            except QueueFullError:
                assert len(scheduler.waiting) >= 20
        known = [*scheduler.waiting.values(), *scheduler.running.values()]
        if known and random_.random() < 0.3:
            scheduler.remove(random_.choice(known))
        check_step(sim, prefill_tokens)
    sim.drain()
    assert sorted(scheduler._free) == list(range(slots))


def check_step(sim: Simulation, prefill_tokens: int) -> None:
    scheduler = sim.scheduler
    decoding = {r.request_id for r in scheduler.running.values() if not r.prefilling}
    turns = {r.request_id: scheduler._turn(r) for r in scheduler.running.values()}
    prompts = {r for r in scheduler.running if r not in decoding}
    admissible = min(len(scheduler.waiting), len(scheduler._free))
    before = len(sim.admitted)
    step = counts(sim.step() or Batch([], [], 0))
    assert len(sim.admitted) - before == admissible
    running = [slot_of(request) for request in scheduler.running.values()]
    assert len(set(running)) == len(running)
    assert sorted(running + scheduler._free) == list(range(scheduler.num_slots))
    assert scheduler.waiting_tokens == sum(r.prompt_length for r in scheduler.waiting.values())
    assert all(step[name] == 1 for name in decoding)
    served = prompts & set(step)
    if served and before == len(sim.admitted):
        assert min(turns[name] for name in prompts) in {turns[name] for name in served}
    assert sum(step[name] for name in served) <= max(prefill_tokens, 1)
    assert all(step[name] <= scheduler.chunk for name in served)


def test_no_slot_leaks_over_ten_thousand_requests_with_cancels() -> None:
    random_ = random.Random(0)
    sim = Simulation(slots=8, prefill_tokens=64, max_queued=32)
    scheduler = sim.scheduler
    started = cancelled = refused = 0
    while started < 10_000:
        try:
            sim.add(str(started), prompt=random_.randint(1, 60), max_tokens=random_.randint(1, 8))
        except QueueFullError:
            refused += 1
            sim.step()
            continue
        started += 1
        if random_.random() < 0.2:
            known = [*scheduler.waiting.values(), *scheduler.running.values()]
            scheduler.remove(random_.choice(known))
            cancelled += 1
    sim.drain()
    assert refused
    assert len(sim.finished) == started - cancelled
    assert not scheduler._queue
    assert scheduler.waiting_tokens == 0
    assert sorted(scheduler._free) == list(range(8))


def test_a_step_costs_the_same_at_any_context() -> None:
    def step_s(prompt: int) -> float:
        sim = Simulation(slots=8, prefill_tokens=8 * prompt)
        for i in range(8):
            request = sim.add(str(i), prompt=prompt, max_tokens=10_000)
            request.computed = prompt - 1
        for _ in range(20):
            sim.step()
        times = [time.perf_counter()]
        for _ in range(200):
            sim.step()
            times.append(time.perf_counter())
        return min(b - a for a, b in pairwise(times))

    assert step_s(200_000) < 5 * step_s(10) + 1e-4


def test_unread_tokens_are_those_of_prompts_that_wait_or_are_being_read() -> None:
    sim = Simulation(slots=2, prefill_tokens=20)
    for name, prompt in (("a", 30), ("b", 10), ("waits", 50)):
        sim.add(name, prompt=prompt, max_tokens=9)
    assert sim.scheduler.unread_tokens == 90
    taken = counts(sim.step())
    assert sim.scheduler.unread_tokens == 90 - sum(taken.values())
    while sim.scheduler.waiting or any(r.prefilling for r in sim.scheduler.running.values()):
        sim.step()
    assert sim.scheduler.unread_tokens == 0
