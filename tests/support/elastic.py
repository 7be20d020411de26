"""What torchrun does for ranks, done by a test: a store, variables, and a command per rank that costs no import."""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from tests.support.processes import DEADLINE_S


class Agent:
    """Starts ranks as torchrun would, as commands of `start`; ends none of them.

    Args:
        start: the fixture.
        nodes: ranks of each torchrun that it stands for.
    """

    def __init__(self, start: Callable[..., Any], nodes: Sequence[int] = (2,)) -> None:
        from torch.distributed import TCPStore

        self.start, self.nodes = start, nodes
        self.store = TCPStore(
            "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=DEADLINE_S)
        )

    def environment(self, node: int, local_rank: int, attempt: int = 0) -> dict[str, str]:
        values = {
            "TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_RESTART_COUNT": attempt,
            "RANK": sum(self.nodes[:node]) + local_rank, "WORLD_SIZE": sum(self.nodes),
            "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": self.nodes[node],
            "GROUP_RANK": node, "GROUP_WORLD_SIZE": len(self.nodes),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self.store.port,
        }  # fmt: skip
        return {name: str(value) for name, value in values.items()}

    def launch(self, *arguments: str, attempt: int = 0, more: Mapping[int, Sequence[str]] | None = None) -> list[Any]:
        """Start all ranks with these arguments; `more`: those that only one node has."""
        return [
            self.start(*arguments, *(more or {}).get(node, ()), environment=self.environment(node, local_rank, attempt))
            for node, number in enumerate(self.nodes)
            for local_rank in range(number)
        ]
