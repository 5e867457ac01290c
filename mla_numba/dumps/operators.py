"""The operators whose dumps are known, each as the class of its calls."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ..base.modes import DumpOperator
from .attention_call import AttentionCall, RecordsCall
from .both_call import BothPrologsCall
from .call import Call
from .index_call import IndexCall
from .indexer_call import IndexerPrologCall
from .prolog_call import PrologCall

__all__ = ["OPERATORS"]

OPERATORS: Mapping[DumpOperator, type[Call]] = MappingProxyType(
    {
        call.operator: call
        for call in (PrologCall, IndexerPrologCall, BothPrologsCall, IndexCall, AttentionCall, RecordsCall)
    }
)
