"""A replacement of torchrun in tests: a store, environment variables, and one forked command per rank."""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from tests.support.processes import DEADLINE_S


class Agent:
    """Starts ranks with `start` as torchrun would. It does not end them.

    Args:
        start: the fixture of that name.
        nodes: number of ranks on each node.
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
        """Start all ranks with these arguments. `more` has further arguments by node."""
        return [
            self.start(*arguments, *(more or {}).get(node, ()), environment=self.environment(node, local_rank, attempt))
            for node, number in enumerate(self.nodes)
            for local_rank in range(number)
        ]
