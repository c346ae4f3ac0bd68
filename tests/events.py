"""Events of an engine, all of them."""

from parley.engine.engine import Delta, Event, EventSource


async def all_events(source: EventSource) -> list[Event]:
    """The events of one answer up to its end."""
    events = [await source.next()]
    while isinstance(events[-1], Delta):
        events.append(await source.next())
    return events
