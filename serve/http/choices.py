"""Several answers to one request: merged streams, and summed usage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import fields, replace

from llamahome.requests import Usage
from serve.wire import Delta

Indexed = tuple[int, Delta]


async def merged(streams: Sequence[AsyncGenerator[Delta, None]]) -> AsyncGenerator[Indexed, None]:
    """Yield the deltas of all streams as they come, each with its stream's number.

    The first error ends them all; so does closing this generator.
    """
    if len(streams) == 1:  # without a task, which each delta would wake
        try:
            async with aclosing(streams[0]) as deltas:
                async for delta in deltas:
                    yield 0, delta
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise  # not the stream alone, which nobody would hear of
        return
    arrived: asyncio.Queue[Indexed | Exception | None] = asyncio.Queue()
    readers = [asyncio.create_task(_read(i, s, arrived)) for i, s in enumerate(streams)]
    try:
        left = len(readers)
        while left:
            item = await arrived.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.wait(readers)


async def _read(
    index: int,
    stream: AsyncGenerator[Delta, None],
    arrived: asyncio.Queue[Indexed | Exception | None],
) -> None:
    try:
        async with aclosing(stream) as deltas:
            async for delta in deltas:
                arrived.put_nowait((index, delta))
    except Exception as error:  # noqa: BLE001 - raised again where the stream is read
        arrived.put_nowait(error)
    except asyncio.CancelledError:  # perhaps of the stream alone, which nobody would hear of
        arrived.put_nowait(None)
        raise
    else:
        arrived.put_nowait(None)


class Answers:
    """All choices of one request.

    Args:
        count: number of choices.
        per_prompt: number of successive choices that answer the same prompt.
    """

    def __init__(self, count: int, per_prompt: int) -> None:
        self.count = count
        self._per_prompt = per_prompt
        self._parts: list[list[Delta]] = [[] for _ in range(count)]
        self._usages: dict[int, Usage] = {}

    def note(self, index: int, delta: Delta) -> None:
        """Take in the usage of an answer, not its text."""
        if delta.usage is not None:
            self._usages[index] = delta.usage

    def add(self, index: int, delta: Delta) -> None:
        """Take in a delta of an answer that is sent whole."""
        self.note(index, delta)
        self._parts[index].append(delta)

    def whole(self) -> list[Delta]:
        """Return each answer as one delta."""
        return [
            replace(
                parts[-1],
                text="".join(part.text for part in parts),
                token_count=sum(part.token_count for part in parts),
                tokens=tuple(token for part in parts for token in part.tokens),
                calls=tuple(call for part in parts for call in part.calls),
            )
            for parts in self._parts
        ]

    def usage(self) -> Usage | None:
        """Sum the usage of all answers; a prompt counts once, whatever its number of answers."""
        usages = [self._usages[index] for index in sorted(self._usages)]
        if not usages:
            return None
        sums = {field.name: sum(getattr(u, field.name) for u in usages) for field in fields(Usage)}
        prompts = usages[:: self._per_prompt]
        return Usage(**{**sums, "prompt_tokens": sum(u.prompt_tokens for u in prompts)})
