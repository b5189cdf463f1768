"""The words of checks, shared by the journal and the host ledger, which is read without the rest. Imports nothing."""

from __future__ import annotations

from typing import Literal, TypeAlias

# How thoroughly, what they say, what would help, and where a limit came from.
Tier: TypeAlias = Literal["fast", "standard", "deep"]
Verdict: TypeAlias = Literal["ok", "warn", "fail", "unknown", "skipped"]
Remedy: TypeAlias = Literal["none", "restart_app", "reset_gpu", "reboot_node", "drain", "service", "raise_limit"]
LimitSource: TypeAlias = Literal["", "device", "baseline", "peers", "table", "config", "kernel"]
Value: TypeAlias = str | float | int | bool | None
