"""What the agent remembers of its callers."""

from agent.memory.call_memory import CallMemory
from agent.memory.identity import keys_of, remembered_as
from agent.memory.store import (
    STORES,
    CallRecord,
    Memory,
    MemoryUnavailable,
    Note,
    Profile,
    Turn,
    open_memory_of,
    opener_of,
)

__all__ = [
    "STORES",
    "CallMemory",
    "CallRecord",
    "Memory",
    "MemoryUnavailable",
    "Note",
    "Profile",
    "Turn",
    "keys_of",
    "open_memory_of",
    "opener_of",
    "remembered_as",
]
