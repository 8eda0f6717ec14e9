"""Renders and tokenizes rows, in a confined process."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Iterator

import transformers.utils.chat_template_utils  # noqa: F401 - loaded now, outside the deadline of a request

from aegis import messages
from aegis.data import worker_messages
from aegis.data.row_encoder import RowEncoder
from aegis.data.tokenizer_parts import TokenizerParts
from aegis.llama_cpp.confined import Caller, Message

_KEPT = 2
_encoders: OrderedDict[str, RowEncoder] = OrderedDict()


def answers(message: Message, caller: Caller) -> Iterator[Message]:
    """Receive a tokenizer's parts, or encode a batch of records or texts if their tokenizer is known."""
    fields = message.fields
    name = fields["tokenizer"]
    os.environ[messages.VARIABLE] = fields["language"]  # for the reasons of refused rows
    if fields["do"] == "learn":
        _encoders[name] = RowEncoder(TokenizerParts.from_bytes(message.blob))
        while len(_encoders) > _KEPT:
            _encoders.popitem(last=False)
        yield Message({})
    elif name not in _encoders:
        yield Message({"unknown": True})
    elif fields["do"] == "tokenize":
        yield worker_messages.message_of_ids(
            _encoders[name].token_ids(json.loads(message.blob), special=fields["special"])
        )
    else:
        batch = _encoders[name].encode(worker_messages.records_of(message.blob), fold_system=fields["fold_system"])
        yield worker_messages.message_of(batch, texts=fields["texts"])
