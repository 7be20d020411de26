"""Ranks that exchange values through the store of their process group."""

import os
import threading

import pytest
import torch.distributed as dist

from laptime.hooks import ranks
from laptime.hooks.ranks import MissingRanks, RankGroup, rank_of_process_group
from laptime.ranks.rank import Rank

pytestmark = pytest.mark.unit


@pytest.fixture
def group(monkeypatch):
    """Returns make(world_size): one RankGroup per rank. Ranks are threads here, each with its own process id."""

    def make(world_size: int, joined: int | None = None, processes: int | None = None) -> list[RankGroup]:
        store = dist.HashStore()
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda: joined or world_size)
        monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
        pids = {str(rank): rank % (processes or world_size) for rank in range(world_size)}
        monkeypatch.setattr(os, "getpid", lambda: pids.get(threading.current_thread().name, 0))
        groups = []
        for rank in range(world_size):
            monkeypatch.setattr(ranks, "_num_groups", 0)
            groups.append(RankGroup(Rank(rank=rank, world_size=world_size)))
        return groups

    return make


def on_all(groups, act):
    """The return value or exception of each rank."""
    results = [None] * len(groups)

    def run(index: int) -> None:
        try:
            results[index] = act(groups[index])
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,), name=str(index)) for index in range(len(groups))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_one_rank_does_not_wait():
    alone = RankGroup(Rank())
    alone.barrier("start")
    assert alone.gather("lap", {"a": 1}) == [{"a": 1}]


def test_rank_0_gathers_values_in_rank_order(group):
    groups = group(3)
    for lap in range(2):
        results = on_all(groups, lambda ranks, lap=lap: ranks.gather(f"lap {lap}", (ranks.rank.rank, lap)))
        assert results == [[(0, lap), (1, lap), (2, lap)], [(1, lap)], [(2, lap)]]


def test_barrier(group):
    assert on_all(group(3), lambda ranks: ranks.barrier("peak")) == [None] * 3


def test_rank_without_a_timer_times_out(group, monkeypatch):
    monkeypatch.setattr(ranks, "_TIMEOUT_S", 0.01)
    with pytest.raises(MissingRanks, match="not every rank has a timer"):
        group(2)[0].gather("lap", 1)


def test_failed_timer_of_a_rank_is_noticed_immediately(group):
    first, second = group(2)
    second.announce_failure()
    with pytest.raises(MissingRanks, match="the timer of rank 1 has failed"):
        first.gather("lap", 1)


def test_other_ranks_do_not_wait(group):
    assert group(2)[1].gather("lap", 1) == [1]


def test_ranks_in_one_process_are_refused(group):
    first, second, *_ = on_all(group(2, processes=1), lambda ranks: ranks.gather("lap", 1))
    assert isinstance(first, MissingRanks) and "2 ranks run in 1 processes" in str(first) and second == [1]


@pytest.mark.parametrize("joined", [1, 3])
def test_ranks_that_were_not_started_are_refused(joined, group):
    with pytest.raises(MissingRanks, match=f"2 ranks were requested, but {joined} joined"):
        group(2, joined=joined)


def test_without_a_process_group_there_is_one_rank(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    rank = rank_of_process_group()
    assert (rank.rank, rank.local_rank, rank.world_size, rank.num_nodes) == (0, 0, 1, 1) and rank.threads >= 1


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (5, 5, 8, 0, 1)),
        ({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1"}, (5, 1, 8, 1, 2)),
        ({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, (5, 1, 8, 1, 2)),
    ],
)
def test_this_process_in_a_process_group(environment, expected, monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 8)
    monkeypatch.setattr(dist, "get_rank", lambda: 5)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    rank = rank_of_process_group()
    assert (rank.rank, rank.local_rank, rank.world_size, rank.node, rank.num_nodes) == expected
