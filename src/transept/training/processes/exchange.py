"""What passes between a command and the processes that Ray starts for it. The actor's process imports this alone."""

import asyncio
from typing import Any, Literal, NamedTuple


class Message(NamedTuple):
    """Of one of the processes: that it starts, a line to show, what came of the run, or why it failed."""

    kind: Literal["start", "line", "result", "error"]
    value: Any


class Exchange:
    """An actor: messages to the command, and its wish that the run stops. It ends with the command."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._stop = asyncio.Event()

    async def send(self, message: Message) -> None:
        self._messages.put_nowait(message)

    async def receive(self, seconds: float) -> Message | None:
        """The next message; None where none comes in so many seconds."""
        try:
            return await asyncio.wait_for(self._messages.get(), seconds)
        except TimeoutError:
            return None

    async def stop(self) -> None:
        self._stop.set()

    async def stopped(self) -> None:
        """Returns when the command asks to stop."""
        await self._stop.wait()
