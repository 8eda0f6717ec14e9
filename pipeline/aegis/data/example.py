"""Examples: a record's token ids, and the mask of the ids that are trained on."""

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
    """A row's position in its file, its rendered text, and its example."""

    where: str
    text: str
    example: Example
