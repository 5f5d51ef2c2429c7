"""Data that are larger than memory: rows are read while a chain runs."""

from langevin_ppl.streams.columns import Absent, Column
from langevin_ppl.streams.feed import Feeder
from langevin_ppl.streams.make import stream
from langevin_ppl.streams.order import Order
from langevin_ppl.streams.sources import Block, Gathered, StreamError
from langevin_ppl.streams.stream import Stream

__all__ = [
    "Absent",
    "Block",
    "Column",
    "Feeder",
    "Gathered",
    "Order",
    "Stream",
    "StreamError",
    "stream",
]
