"""What a record becomes: token ids, and which of them are trained."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Example(NamedTuple):
    """`ids` int32 (n,), `trained` bool (n,). A document may be cut into several windows, a chat may not."""

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    is_document: bool


class Encoded(NamedTuple):
    """A row's place, its rendered text, and its example."""

    where: str
    text: str
    example: Example
